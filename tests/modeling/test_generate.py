"""Prompts and lengths of `generate()`: what is kept, what is filled, and what follows."""

import pytest
import torch
from composites import MASK, PAD, build
from echo_denoiser import echo
from published import randomised, seed, tiny_denoiser
from transformers import BertConfig, BertForMaskedLM


def test_rows_from_nothing():
    model = tiny_denoiser()
    assert model.generate(generator=seed()).shape == (1, 12)
    assert model.generate(batch_size=3, max_length=5, generator=seed()).shape == (3, 5)
    assert model.generate(num_return_sequences=4, max_new_tokens=2, generator=seed()).shape == (4, 2)
    assert model.generate(batch_size=2, num_return_sequences=3, max_new_tokens=2, generator=seed()).shape == (6, 2)


def test_prompt_is_kept_masks_are_filled_and_new_tokens_follow():
    prompt = torch.tensor([[5, MASK, 7], [MASK, 3, 3]])
    model = tiny_denoiser()
    filled = model.generate(prompt, generator=seed())
    assert filled.shape == prompt.shape and (filled != MASK).all()
    assert torch.equal(filled[prompt != MASK], prompt[prompt != MASK])

    longer = model.generate(prompt, max_new_tokens=4, generator=seed())
    assert longer.shape == (2, 7) and (longer != MASK).all()
    assert torch.equal(longer[:, :3][prompt != MASK], prompt[prompt != MASK])
    assert model.generate(prompt, max_length=5, generator=seed()).shape == (2, 5)
    # The input is not changed in place
    assert torch.equal(prompt, torch.tensor([[5, MASK, 7], [MASK, 3, 3]]))


def test_text_without_masks_comes_back():
    text = torch.tensor([[1, 2, 3]])
    assert torch.equal(tiny_denoiser().generate(text), text)


def test_return_sequences_repeat_each_row():
    prompt = torch.tensor([[5, MASK], [6, MASK]])
    tokens = tiny_denoiser().generate(prompt, num_return_sequences=3, generator=seed())
    assert tokens[:, 0].tolist() == [5, 5, 5, 6, 6, 6]


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_ragged_rows_continue_after_their_own_last_token(side):
    rows = [[1, 2, 3, 4], [5, 6], [7]]
    lead = {"left": lambda n: 4 - n, "right": lambda n: 0, "both": lambda n: (4 - n) // 2}[side]

    ids, mask = torch.full((3, 4), PAD), torch.zeros(3, 4, dtype=torch.long)
    for i, row in enumerate(rows):
        begin = lead(len(row))
        ids[i, begin : begin + len(row)] = torch.tensor(row)
        mask[i, begin : begin + len(row)] = 1

    model = echo()
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=3,
        max_denoising_steps=2,
        generator=seed(),
    )
    assert torch.equal(tokens[:, :4], ids)  # the input columns, padding included, then the new ones
    assert tokens[:, 4:].tolist() == [[4, 5, 6], [2, 3, 4], [1, 2, 3]]

    # The network sees the text without gaps, padding behind it
    for seen, attention in model.denoiser.seen:
        for row, present in zip(seen, attention if attention is not None else [None] * len(seen), strict=True):
            present = torch.ones_like(row) if present is None else present
            assert (present.diff() <= 0).all() and (row[present == 1] != PAD).all()


@torch.no_grad()
def test_padding_changes_no_token_of_a_row():
    """The same row alone, left-padded and right-padded: the same likeliest tokens from a real network."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    bert = randomised(BertForMaskedLM(BertConfig(vocab_size=13, **sizes)))  # positions by column
    for model in (tiny_denoiser(), build(bert, mask_token_id=MASK)):
        row, options = [3, MASK, 5], {"max_new_tokens": 3, "do_sample": False, "max_denoising_steps": 3}
        alone = model.generate(torch.tensor([row]), **options)

        padded = torch.tensor([[PAD, PAD, *row], [*row, PAD, PAD]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
        together = model.generate(padded, attention_mask=mask, **options)
        assert torch.equal(together[0, 2:], alone[0]) and together[0, :2].tolist() == [PAD, PAD]
        assert torch.equal(together[1, [0, 1, 2, 5, 6, 7]], alone[0])


def test_batch_of_64_rows_with_different_prompts_and_lengths():
    ids, mask = torch.full((64, 6), PAD), torch.zeros(64, 6, dtype=torch.long)
    for row in range(64):
        length = row % 6 + 1
        begin = (6 - length) * (row % 2)
        ids[row, begin : begin + length] = torch.arange(row, row + length) % 11
        mask[row, begin : begin + length] = 1

    model = echo()
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        max_denoising_steps=3,
        generator=seed(),
    )
    for row in range(64):
        length = row % 6 + 1
        assert tokens[row, 6:].tolist() == [(length + i) % 11 for i in range(4)]


def test_rows_of_any_integer_type_are_taken():
    ids = torch.tensor([[3, MASK, 4]])
    tokens = tiny_denoiser().generate(ids.int(), generator=seed())
    assert tokens.dtype == torch.long
    assert torch.equal(tokens, tiny_denoiser().generate(ids, generator=seed()))
