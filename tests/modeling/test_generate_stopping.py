"""Stopping criteria of transformers: asked about finished text, row by row. What follows is padding and not counted."""

import time
from types import SimpleNamespace

import pytest
import torch
from published import tiny_denoiser
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.tokenization import text8_tokenizer

MASK, PAD = 12, 11


class Counting(torch.nn.Module):
    """A denoiser that is sure of token (its first token + position) mod 11."""

    config = SimpleNamespace(vocab_size=13, max_position_embeddings=40)

    def forward(self, input_ids, attention_mask=None):
        start = torch.where(input_ids[:, :1] == MASK, 0, input_ids[:, :1])
        place = (start + torch.arange(input_ids.shape[1])) % 11
        return SimpleNamespace(logits=torch.nn.functional.one_hot(place, 13) * 50.0)


def counting():
    return EDLMForMaskedDiffusion.from_components(Counting(), mask_token_id=MASK)


def generate(ids, *criteria, model=None, **options):
    """Two tokens at a time, one at a step."""
    options = {
        "max_new_tokens": 8,
        "block_length": 2,
        "max_denoising_steps": 2,
        "pad_token_id": PAD,
    } | options
    options |= {"generator": torch.Generator().manual_seed(0), "stopping_criteria": list(criteria)}
    return (model or counting()).generate(ids, **options)


class Record:
    """A criterion that never stops and keeps what it is asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, input_ids, scores):
        self.asked.append(input_ids.clone())
        input_ids.fill_(0)  # its own copy
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_criteria_are_asked_once_a_block_about_its_finished_prefix():
    record = Record()
    tokens = generate(torch.tensor([[0, 1], [5, 6]]), record)
    assert tokens.tolist() == [list(range(10)), [5, 6, 7, 8, 9, 10, 0, 1, 2, 3]]
    assert [ids.tolist() for ids in record.asked] == [tokens[:, :n].tolist() for n in (4, 6, 8, 10)]


def test_length_is_that_of_the_text():
    ids = torch.tensor([[0, 1]])
    assert generate(ids, MaxLengthCriteria(6))[0].tolist() == [0, 1, 2, 3, 4, 5, PAD, PAD, PAD, PAD]
    assert generate(ids, MaxLengthCriteria(5))[0].tolist() == [0, 1, 2, 3, 4, 5, PAD, PAD, PAD, PAD]
    assert generate(ids, MaxLengthCriteria(11))[0].tolist() == list(range(10))


@pytest.mark.parametrize("side", ["left", "right"])
def test_length_of_a_row_does_not_depend_on_longer_ones(side):
    ids, mask = torch.tensor([[0, 1, 2, 3, 4], [7, PAD, PAD, PAD, PAD]]), torch.tensor([[1] * 5, [1, 0, 0, 0, 0]])
    if side == "left":
        ids[1], mask[1] = ids[1].flip(0), mask[1].flip(0)
    tokens = generate(ids, MaxLengthCriteria(5), attention_mask=mask)
    assert tokens[0, 5:].tolist() == [5, 6] + [PAD] * 6
    assert tokens[1, 5:].tolist() == [8, 9, 10, 0] + [PAD] * 4

    record = Record()
    generate(ids, record, attention_mask=mask)
    # All rows at a time
    assert all((asked != MASK).all() and len(asked) == 2 for asked in record.asked)

    # Rows as they are alone: every length of one of them is asked about, and counts for that row
    assert sorted({asked.shape[1] for asked in record.asked}) == [3, 5, 7, 9, 11, 13]
    assert record.asked[0][1].tolist() == [7, 8, 9]


def test_end_token_counts_wherever_a_block_holds_it():
    ids = torch.tensor([[0, 1], [5, 6]])
    # 3 ends the first block of the first row; 9 is the first token of the second block of the other
    tokens = generate(ids, EosTokenCriteria([3, 9]))
    assert tokens.tolist() == [[0, 1, 2, 3] + [PAD] * 6, [5, 6, 7, 8, 9] + [PAD] * 5]
    # given tokens and those of the prompt are no end, and neither is a text of one block
    assert generate(ids[:1], EosTokenCriteria([0, 1]))[0].tolist() == list(range(10))
    whole = generate(ids[:1], EosTokenCriteria([4]), block_length=None)
    assert whole[0].tolist() == [0, 1, 2, 3, 4] + [PAD] * 5


def test_holes_of_a_prompt_are_asked_about_and_its_given_tokens_are_not():
    ids = torch.tensor([[0, MASK, 2, MASK, 4]])
    tokens = generate(ids, EosTokenCriteria(4), max_new_tokens=4)
    assert tokens[0].tolist() == list(range(9))

    tokens = generate(ids, EosTokenCriteria(1), max_new_tokens=4)
    assert tokens[0].tolist() == [0, 1, 2, PAD, 4] + [PAD] * 4  # given tokens stay
    record = Record()
    generate(torch.cat([ids, torch.tensor([[5, 6, 7, 8, 9]])]), record, max_new_tokens=2)

    # The second row has no holes: it is asked about after its own block only
    assert [asked.shape[1] for asked in record.asked] == [5, 7]


def test_string_stops_a_text_inside_a_block():
    tokenizer = text8_tokenizer(32)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghij"]

    class Alphabet(torch.nn.Module):
        config = SimpleNamespace(vocab_size=len(tokenizer), max_position_embeddings=32)

        def forward(self, input_ids, attention_mask=None):
            place = torch.tensor(letters)[torch.arange(input_ids.shape[1]) % 10].expand(input_ids.shape)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(place, len(tokenizer)) * 50.0)

    model = EDLMForMaskedDiffusion.from_components(Alphabet(), mask_token_id=tokenizer.mask_token_id)
    ids, options = torch.tensor([letters[:2]]), {"model": model, "block_length": 3}
    for string, expected in (("de", "abcde"), ("cd", "abcd"), ("efg", "abcdefg"), ("ab", "abcdefghij"), ("j", None)):
        tokens = generate(ids, StopStringCriteria(tokenizer, string), **options)[0]
        text = tokenizer.decode(tokens[: first(tokens == PAD)]).replace(" ", "")
        assert text == (expected or "abcdefghij")


def first(flags):
    return int((flags.cumsum(0) == 0).sum())


def test_time_stops_all_rows():
    ids = torch.tensor([[0, 1], [5, 6]])
    over = MaxTimeCriteria(max_time=1.0, initial_timestamp=time.time() - 10)
    assert generate(ids, over).tolist() == [[0, 1, 2, 3] + [PAD] * 6, [5, 6, 7, 8] + [PAD] * 6]
    assert (generate(ids, MaxTimeCriteria(max_time=1000.0)) != PAD).all()


@pytest.mark.parametrize(
    "given",
    [
        MaxLengthCriteria(4),
        [MaxLengthCriteria(4)],
        (MaxLengthCriteria(4), MaxLengthCriteria(9)),
        StoppingCriteriaList([MaxLengthCriteria(4)]),
        lambda ids, scores: ids.shape[1] >= 4,
        lambda ids, scores, **kwargs: [True] * len(ids),
        lambda ids, scores: torch.ones(len(ids), 1, dtype=torch.bool),
        lambda ids, scores: torch.tensor(True),
    ],
)
def test_one_criterion_or_several_in_a_list_are_taken(given):
    options = {"max_new_tokens": 8, "block_length": 2, "pad_token_id": PAD}
    tokens = counting().generate(torch.tensor([[0, 1], [2, 3]]), stopping_criteria=given, **options)
    assert tokens.tolist() == [[0, 1, 2, 3] + [PAD] * 6, [2, 3, 4, 5] + [PAD] * 6]


@pytest.mark.parametrize("none", [None, [], (), StoppingCriteriaList()])
def test_no_criteria_stop_nothing(none):
    options = {"max_new_tokens": 8, "block_length": 2}
    tokens = counting().generate(torch.tensor([[0, 1]]), stopping_criteria=none, **options)
    assert tokens[0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "stopping_criteria holds 'x'"),
        ([None], "stopping_criteria holds None"),
        (MaxLengthCriteria, "stopping_criteria holds <class"),
        ([3], "stopping_criteria holds 3"),
        (lambda ids, scores: None, r"returned NoneType.*shape \(2,\)"),
        (lambda ids, scores: torch.zeros(3, dtype=torch.bool), r"torch.bool of shape \(3,\).*shape \(2,\)"),
        (lambda ids, scores: torch.zeros(2), r"returned torch.float32 of shape \(2,\)"),
        (lambda ids, scores: "no", "returned str"),
    ],
)
def test_what_is_no_criterion_is_refused(given, message):
    options = {"max_new_tokens": 8, "block_length": 2, "pad_token_id": PAD}
    with pytest.raises(ValueError, match=message):
        counting().generate(torch.tensor([[0, 1], [2, 3]]), stopping_criteria=given, **options)


def test_stopping_needs_a_padding_token():
    with pytest.raises(ValueError, match="no pad_token_id"):
        generate(torch.tensor([[0, 1]]), MaxLengthCriteria(4), pad_token_id=None)


def test_rows_that_are_done_cost_nothing_and_only_generated_tokens_count():
    flags = torch.tensor([True, False, False])
    ids = torch.tensor([[0, 1], [5, 6], [0, 2]])
    output = {"return_dict_in_generate": True, "output_history": True, "num_candidates": 2}
    options = output | {
        "energy": lambda candidates, *rest: candidates.double().mean(-1),
        "eos_token_id": 10,
    }
    out = generate(ids, lambda ids, scores: flags, **options)

    # The first row stops after a block of two, the second at its 10, which is generated, and the third goes on
    assert out.sequences.tolist()[:2] == [[0, 1, 2, 3] + [PAD] * 6, [5, 6, 7, 8, 9, 10] + [PAD] * 4]
    tokens = torch.tensor([2, 4, 8])
    assert torch.equal((out.tokens_per_forward * out.num_denoiser_calls).round().long(), tokens)
    assert (out.num_denoiser_calls <= tokens).all()
    assert torch.equal(out.num_energy_calls, out.num_denoiser_calls)
    assert len(out.history) == 9 and out.energies.shape == (8, 3, 2)  # four blocks of two steps
    assert out.energies[2:, 0].isnan().all() and (out.chosen[2:, 0] == -1).all()


def test_when_all_rows_are_done_no_later_block_is_begun():
    out = generate(
        torch.tensor([[0, 1]]),
        MaxLengthCriteria(4),
        return_dict_in_generate=True,
        output_history=True,
    )
    assert len(out.history) == 3 and out.tokens_per_forward * out.num_denoiser_calls == 2


@pytest.mark.parametrize("eos_token_id", [1, [1, 2]])
def test_padding_after_the_end_is_no_generated_token(eos_token_id):
    out = tiny_denoiser().generate(
        batch_size=40,
        max_new_tokens=30,
        block_length=2,
        max_denoising_steps=1,
        eos_token_id=eos_token_id,
        pad_token_id=PAD,
        generator=torch.Generator().manual_seed(3),
        return_dict_in_generate=True,
    )
    ends = torch.isin(out.sequences, torch.tensor(eos_token_id))
    ends[:, 0] = False
    lengths = torch.tensor([min(first(row) + 1, 30) for row in ends])

    assert (out.tokens_per_forward <= 2).all() and len(lengths.unique()) > 5
    assert torch.equal((out.tokens_per_forward * out.num_denoiser_calls).round().long(), lengths)
    for row, length in zip(out.sequences, lengths, strict=True):
        assert (row[length:] == PAD).all()


def test_a_planner_fills_no_more_of_a_row_whose_text_has_ended():
    """Tokens 1 2 3 ... from left to right: 3 ends the first row after three calls, the second with its last token."""
    ids = torch.tensor([[0], [8]])
    options = {"max_new_tokens": 6, "sampler": "top_k", "max_denoising_steps": 6, "pad_token_id": PAD}
    out = counting().generate(ids, eos_token_id=3, return_dict_in_generate=True, **options)
    assert out.sequences.tolist() == [[0, 1, 2, 3, PAD, PAD, PAD], [8, 9, 10, 0, 1, 2, 3]]
    assert out.num_denoiser_calls.tolist() == [3, 6]
    whole = counting().generate(
        ids,
        eos_token_id=3,
        max_new_tokens=6,
        max_denoising_steps=6,
        pad_token_id=PAD,
    )
    assert torch.equal(out.sequences, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "spaced", "corrector_sweeps": 1},
        {"sampler": "low_confidence", "corrector_sweeps": 1},
        {"sampler": "edit", "threshold": 0.3, "editing_threshold": 0.05},
        {"sampler": "spaced", "corrector_sweeps": 1, "block_length": 4},
    ],
)
def test_an_end_that_is_drawn_anew_leaves_no_mask(options):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    options |= {"max_new_tokens": 8, "max_denoising_steps": 8, "eos_token_id": 7, "pad_token_id": PAD}
    for seed in range(20):
        rows = torch.tensor([[3, 4]] * 5)
        out = model.generate(rows, generator=torch.Generator().manual_seed(seed), **options)
        assert not (out == MASK).any()


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", "dilated", "top_k"])
def test_the_likeliest_tokens_may_end_a_text_before_its_last_step(sampler):
    def ends(ids, scores):
        return torch.nn.functional.one_hot(torch.full((len(ids),), 7), scores.shape[-1]) * 50.0

    options = {
        "do_sample": False,
        "sampler": sampler,
        "max_denoising_steps": 3,
        "eos_token_id": 7,
        "pad_token_id": PAD,
    }
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    rows = torch.tensor([[MASK] * 4, [3, MASK, 4, MASK]])
    out = model.generate(rows, max_new_tokens=0, logits_processor=[ends], **options)
    assert not (out == MASK).any() and (out[1] == torch.tensor([3, 7, 4, PAD])).all()
