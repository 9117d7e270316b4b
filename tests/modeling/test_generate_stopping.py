"""Stopping criteria of transformers: asked about finished text, row by row.

All tokens behind the end of a text are padding and not counted.
"""

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

MASK = 12
PAD = 11


class Counting(torch.nn.Module):
    """A denoiser that is sure of token (its first token + position) mod 11."""

    config = SimpleNamespace(vocab_size=13, max_position_embeddings=40)

    def forward(self, input_ids, attention_mask=None):
        first = input_ids[:, :1]
        start = torch.where(first == MASK, 0, first)
        tokens = (start + torch.arange(input_ids.shape[1])) % 11
        return SimpleNamespace(logits=torch.nn.functional.one_hot(tokens, 13) * 50.0)


def counting():
    return EDLMForMaskedDiffusion.from_components(Counting(), mask_token_id=MASK)


def generate(ids, *criteria, model=None, **options):
    """Generate two tokens at a time, one at a step."""
    defaults = {
        "max_new_tokens": 8,
        "block_length": 2,
        "max_denoising_steps": 2,
        "pad_token_id": PAD,
    }
    model = model or counting()
    return model.generate(
        ids,
        generator=torch.Generator().manual_seed(0),
        stopping_criteria=list(criteria),
        **(defaults | options),
    )


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
    assert len(record.asked) == 4
    for asked, length in zip(record.asked, (4, 6, 8, 10), strict=True):
        assert torch.equal(asked, tokens[:, :length])


def test_length_is_that_of_the_text():
    ids = torch.tensor([[0, 1]])
    for limit in (5, 6):
        tokens = generate(ids, MaxLengthCriteria(limit))
        assert tokens[0].tolist() == [0, 1, 2, 3, 4, 5, PAD, PAD, PAD, PAD]

    tokens = generate(ids, MaxLengthCriteria(11))
    assert tokens[0].tolist() == list(range(10))


@pytest.mark.parametrize("side", ["left", "right"])
def test_length_of_a_row_does_not_depend_on_longer_ones(side):
    ids = torch.tensor([[0, 1, 2, 3, 4], [7, PAD, PAD, PAD, PAD]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    if side == "left":
        ids[1] = ids[1].flip(0)
        attention_mask[1] = attention_mask[1].flip(0)

    tokens = generate(ids, MaxLengthCriteria(5), attention_mask=attention_mask)
    assert tokens[0, 5:].tolist() == [5, 6] + [PAD] * 6
    assert tokens[1, 5:].tolist() == [8, 9, 10, 0] + [PAD] * 4

    record = Record()
    generate(ids, record, attention_mask=attention_mask)
    # All rows at a time
    for asked in record.asked:
        assert len(asked) == 2
        assert (asked != MASK).all()

    # Rows as they are alone: every length of one of them is asked about, and counts for that row
    lengths = {asked.shape[1] for asked in record.asked}
    assert sorted(lengths) == [3, 5, 7, 9, 11, 13]
    assert record.asked[0][1].tolist() == [7, 8, 9]


def test_end_token_counts_wherever_a_block_holds_it():
    ids = torch.tensor([[0, 1], [5, 6]])
    # 3 ends the first block of the first row; 9 is the first token of the second block of the other
    tokens = generate(ids, EosTokenCriteria([3, 9]))
    assert tokens[0].tolist() == [0, 1, 2, 3] + [PAD] * 6
    assert tokens[1].tolist() == [5, 6, 7, 8, 9] + [PAD] * 5

    # given tokens and those of the prompt are no end, and neither is a text of one block
    tokens = generate(ids[:1], EosTokenCriteria([0, 1]))
    assert tokens[0].tolist() == list(range(10))
    tokens = generate(ids[:1], EosTokenCriteria([4]), block_length=None)
    assert tokens[0].tolist() == [0, 1, 2, 3, 4] + [PAD] * 5


def test_holes_of_a_prompt_are_asked_about_and_its_given_tokens_are_not():
    ids = torch.tensor([[0, MASK, 2, MASK, 4]])
    tokens = generate(ids, EosTokenCriteria(4), max_new_tokens=4)
    assert tokens[0].tolist() == list(range(9))

    tokens = generate(ids, EosTokenCriteria(1), max_new_tokens=4)
    assert tokens[0].tolist() == [0, 1, 2, PAD, 4] + [PAD] * 4  # given tokens stay

    record = Record()
    without_holes = torch.tensor([[5, 6, 7, 8, 9]])
    generate(torch.cat([ids, without_holes]), record, max_new_tokens=2)

    # The second row has no holes: it is asked about after its own block only
    assert [asked.shape[1] for asked in record.asked] == [5, 7]


def test_string_stops_a_text_inside_a_block():
    tokenizer = text8_tokenizer(32)
    size = len(tokenizer)
    letters = torch.tensor([tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghij"])

    class Alphabet(torch.nn.Module):
        """A denoiser that is sure of the letter of every position."""

        config = SimpleNamespace(vocab_size=size, max_position_embeddings=32)

        def forward(self, input_ids, attention_mask=None):
            tokens = letters[torch.arange(input_ids.shape[1]) % 10].expand(input_ids.shape)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(tokens, size) * 50.0)

    model = EDLMForMaskedDiffusion.from_components(
        Alphabet(),
        mask_token_id=tokenizer.mask_token_id,
    )
    ids = letters[:2].unsqueeze(0)
    expected = {
        "de": "abcde",
        "cd": "abcd",
        "efg": "abcdefg",
        "ab": "abcdefghij",
        "j": "abcdefghij",
    }
    for string, text in expected.items():
        criterion = StopStringCriteria(tokenizer, string)
        (tokens,) = generate(ids, criterion, model=model, block_length=3)
        finished = tokens[: first(tokens == PAD)]
        assert tokenizer.decode(finished).replace(" ", "") == text


def first(flags):
    """Index of the first flag that is set, or their number."""
    return int((flags.cumsum(0) == 0).sum())


def test_time_stops_all_rows():
    ids = torch.tensor([[0, 1], [5, 6]])
    over = MaxTimeCriteria(max_time=1.0, initial_timestamp=time.time() - 10)
    tokens = generate(ids, over)
    assert tokens[0].tolist() == [0, 1, 2, 3] + [PAD] * 6
    assert tokens[1].tolist() == [5, 6, 7, 8] + [PAD] * 6

    tokens = generate(ids, MaxTimeCriteria(max_time=1000.0))
    assert (tokens != PAD).all()


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
    tokens = counting().generate(
        torch.tensor([[0, 1], [2, 3]]),
        stopping_criteria=given,
        max_new_tokens=8,
        block_length=2,
        pad_token_id=PAD,
    )
    assert tokens[0].tolist() == [0, 1, 2, 3] + [PAD] * 6
    assert tokens[1].tolist() == [2, 3, 4, 5] + [PAD] * 6


@pytest.mark.parametrize("none", [None, [], (), StoppingCriteriaList()])
def test_no_criteria_stop_nothing(none):
    tokens = counting().generate(
        torch.tensor([[0, 1]]),
        stopping_criteria=none,
        max_new_tokens=8,
        block_length=2,
    )
    assert tokens[0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "stopping_criteria holds 'x'"),
        ([None], "stopping_criteria holds None"),
        (MaxLengthCriteria, "stopping_criteria holds <class"),
        ([3], "stopping_criteria holds 3"),
        (lambda ids, scores: None, r"returned NoneType.*shape \(2,\)"),
        (
            lambda ids, scores: torch.zeros(3, dtype=torch.bool),
            r"torch.bool of shape \(3,\).*shape \(2,\)",
        ),
        (lambda ids, scores: torch.zeros(2), r"returned torch.float32 of shape \(2,\)"),
        (lambda ids, scores: "no", "returned str"),
    ],
)
def test_what_is_no_criterion_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        counting().generate(
            torch.tensor([[0, 1], [2, 3]]),
            stopping_criteria=given,
            max_new_tokens=8,
            block_length=2,
            pad_token_id=PAD,
        )


def test_stopping_needs_a_padding_token():
    with pytest.raises(ValueError, match="no pad_token_id"):
        generate(torch.tensor([[0, 1]]), MaxLengthCriteria(4), pad_token_id=None)


def num_generated(out):
    """The number of tokens that count of every row."""
    return (out.tokens_per_forward * out.num_denoiser_calls).round().long()


def test_rows_that_are_done_cost_nothing_and_only_generated_tokens_count():
    out = generate(
        torch.tensor([[0, 1], [5, 6], [0, 2]]),
        lambda ids, scores: torch.tensor([True, False, False]),
        energy=lambda candidates, *rest: candidates.double().mean(-1),
        num_candidates=2,
        eos_token_id=10,
        return_dict_in_generate=True,
        output_history=True,
    )

    # The first row stops after a block of two, the second at its 10, which is generated
    # The third goes on
    assert out.sequences[0].tolist() == [0, 1, 2, 3] + [PAD] * 6
    assert out.sequences[1].tolist() == [5, 6, 7, 8, 9, 10] + [PAD] * 4

    tokens = torch.tensor([2, 4, 8])
    assert torch.equal(num_generated(out), tokens)
    assert (out.num_denoiser_calls <= tokens).all()
    assert torch.equal(out.num_energy_calls, out.num_denoiser_calls)

    # four blocks of two steps: (T, B, k)
    assert len(out.history) == 9
    assert out.energies.shape == (8, 3, 2)
    assert out.energies[2:, 0].isnan().all()
    assert (out.chosen[2:, 0] == -1).all()


def test_when_all_rows_are_done_no_later_block_is_begun():
    out = generate(
        torch.tensor([[0, 1]]),
        MaxLengthCriteria(4),
        return_dict_in_generate=True,
        output_history=True,
    )
    assert len(out.history) == 3
    assert out.tokens_per_forward * out.num_denoiser_calls == 2


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

    assert (out.tokens_per_forward <= 2).all()
    assert len(lengths.unique()) > 5
    assert torch.equal(num_generated(out), lengths)
    for row, length in zip(out.sequences, lengths, strict=True):
        assert (row[length:] == PAD).all()


def test_a_planner_fills_no_more_of_a_row_whose_text_has_ended():
    """Tokens come from left to right, and 3 is the end.

    It ends the first row after three calls, the second with its last token.
    """
    ids = torch.tensor([[0], [8]])
    options = {
        "max_new_tokens": 6,
        "max_denoising_steps": 6,
        "eos_token_id": 3,
        "pad_token_id": PAD,
    }
    out = counting().generate(ids, sampler="top_k", return_dict_in_generate=True, **options)
    assert out.sequences[0].tolist() == [0, 1, 2, 3, PAD, PAD, PAD]
    assert out.sequences[1].tolist() == [8, 9, 10, 0, 1, 2, 3]
    assert out.num_denoiser_calls.tolist() == [3, 6]

    # the default sampler fills the rows and cuts them afterwards
    ancestral = counting().generate(ids, **options)
    assert torch.equal(out.sequences, ancestral)


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
    rows = torch.tensor([[3, 4]] * 5)
    for seed in range(20):
        tokens = model.generate(
            rows,
            generator=torch.Generator().manual_seed(seed),
            max_new_tokens=8,
            max_denoising_steps=8,
            eos_token_id=7,
            pad_token_id=PAD,
            **options,
        )
        assert not (tokens == MASK).any()


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", "dilated", "top_k"])
def test_the_likeliest_tokens_may_end_a_text_before_its_last_step(sampler):
    def ends(ids, scores):
        """Make token 7, the end, the likeliest of all."""
        sevens = torch.full((len(ids),), 7)
        return torch.nn.functional.one_hot(sevens, scores.shape[-1]) * 50.0

    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    tokens = model.generate(
        torch.tensor([[MASK] * 4, [3, MASK, 4, MASK]]),
        max_new_tokens=0,
        logits_processor=[ends],
        do_sample=False,
        sampler=sampler,
        max_denoising_steps=3,
        eos_token_id=7,
        pad_token_id=PAD,
    )
    assert not (tokens == MASK).any()
    assert tokens[1].tolist() == [3, 7, 4, PAD]
