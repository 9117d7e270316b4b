"""Prompts and lengths of `generate()`: what is kept, what is filled, and what follows."""

import pytest
import torch
from composites import MASK, PAD, build
from echo_denoiser import echo
from published import randomised, seed, tiny_denoiser
from transformers import BertConfig, BertForMaskedLM


def test_rows_from_nothing():
    model = tiny_denoiser()
    tokens = model.generate(generator=seed())
    assert tokens.shape == (1, 12)

    tokens = model.generate(batch_size=3, max_length=5, generator=seed())
    assert tokens.shape == (3, 5)

    tokens = model.generate(num_return_sequences=4, max_new_tokens=2, generator=seed())
    assert tokens.shape == (4, 2)

    tokens = model.generate(
        batch_size=2,
        num_return_sequences=3,
        max_new_tokens=2,
        generator=seed(),
    )
    assert tokens.shape == (6, 2)


def test_prompt_is_kept_masks_are_filled_and_new_tokens_follow():
    prompt = torch.tensor([[5, MASK, 7], [MASK, 3, 3]])
    before = prompt.clone()
    visible = prompt != MASK
    model = tiny_denoiser()

    filled = model.generate(prompt, generator=seed())
    assert filled.shape == prompt.shape
    assert (filled != MASK).all()
    assert torch.equal(filled[visible], prompt[visible])

    longer = model.generate(prompt, max_new_tokens=4, generator=seed())
    assert longer.shape == (2, 7)
    assert (longer != MASK).all()
    assert torch.equal(longer[:, :3][visible], prompt[visible])
    assert model.generate(prompt, max_length=5, generator=seed()).shape == (2, 5)

    # The input is not changed in place
    assert torch.equal(prompt, before)


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
    ids = torch.full((3, 4), PAD)
    attention_mask = torch.zeros(3, 4, dtype=torch.long)
    for i, row in enumerate(rows):
        room = 4 - len(row)
        begin = {"left": room, "right": 0, "both": room // 2}[side]
        end = begin + len(row)
        ids[i, begin:end] = torch.tensor(row)
        attention_mask[i, begin:end] = 1

    model = echo()
    tokens = model.generate(
        ids,
        attention_mask=attention_mask,
        max_new_tokens=3,
        max_denoising_steps=2,
        generator=seed(),
    )
    assert torch.equal(tokens[:, :4], ids)  # the input columns, padding included
    assert tokens[:, 4:].tolist() == [[4, 5, 6], [2, 3, 4], [1, 2, 3]]

    # The network sees the text without gaps, padding behind it
    for seen, present in model.denoiser.seen:
        if present is None:
            present = torch.ones_like(seen)
        assert (present.diff() <= 0).all()
        assert (seen[present == 1] != PAD).all()


@torch.no_grad()
def test_padding_changes_no_token_of_a_row():
    """The same row alone, left-padded and right-padded has the same likeliest tokens."""
    config = BertConfig(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = randomised(BertForMaskedLM(config))  # positions by column
    row = [3, MASK, 5]
    padded = torch.tensor([[PAD, PAD, *row], [*row, PAD, PAD]])
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    options = {"max_new_tokens": 3, "do_sample": False, "max_denoising_steps": 3}

    for model in (tiny_denoiser(), build(bert, mask_token_id=MASK)):
        alone = model.generate(torch.tensor([row]), **options)[0]
        left, right = model.generate(padded, attention_mask=attention_mask, **options)
        assert left[:2].tolist() == [PAD, PAD]
        assert torch.equal(left[2:], alone)
        assert torch.equal(right[[0, 1, 2, 5, 6, 7]], alone)


def test_batch_of_64_rows_with_different_prompts_and_lengths():
    ids = torch.full((64, 6), PAD)
    attention_mask = torch.zeros(64, 6, dtype=torch.long)
    lengths = [row % 6 + 1 for row in range(64)]
    for row, length in enumerate(lengths):
        begin = (6 - length) * (row % 2)
        ids[row, begin : begin + length] = torch.arange(row, row + length) % 11
        attention_mask[row, begin : begin + length] = 1

    tokens = echo().generate(
        ids,
        attention_mask=attention_mask,
        max_new_tokens=4,
        max_denoising_steps=3,
        generator=seed(),
    )
    for row, length in enumerate(lengths):
        assert tokens[row, 6:].tolist() == [(length + i) % 11 for i in range(4)]


def test_rows_of_any_integer_type_are_taken():
    ids = torch.tensor([[3, MASK, 4]])
    tokens = tiny_denoiser().generate(ids.int(), generator=seed())
    assert tokens.dtype == torch.long
    assert torch.equal(tokens, tiny_denoiser().generate(ids, generator=seed()))
