"""Texts of `generate()` end at an end token, or between blocks by a stopping criterion."""

from types import SimpleNamespace

import pytest
import torch
from composites import MASK, PAD, build
from echo_denoiser import Echo, echo
from published import seed, tiny_denoiser
from transformers import MaxLengthCriteria, StoppingCriteriaList


def test_text_ends_at_the_first_end_token():
    class Ends(Echo):
        def forward(self, input_ids, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            out.logits[:, [0, 4]] = torch.nn.functional.one_hot(torch.tensor(9), 13) * 50.0
            return out

    model = build(Ends(SimpleNamespace(vocab_size=13, max_position_embeddings=8)), mask_token_id=MASK)
    whole = model.generate(max_length=8, generator=seed())
    assert whole[0].tolist() == [9, 1, 2, 3, 9, 5, 6, 7]  # no end token, no padding

    ended = model.generate(max_length=8, eos_token_id=9, pad_token_id=PAD, generator=seed())
    assert ended[0].tolist() == [9, 1, 2, 3, 9, PAD, PAD, PAD]  # position 0 never counts
    by_itself = model.generate(max_length=8, eos_token_id=[8, 9], generator=seed())
    assert by_itself[0].tolist() == [9, 1, 2, 3, 9, 8, 8, 8]

    model.generation_config.eos_token_id = 9
    off = model.generate(max_length=8, eos_token_id=None, generator=seed())
    assert torch.equal(off, whole)  # an explicit None switches it off

    prompt = torch.tensor([[1, 9, 9, 3]])
    after = model.generate(prompt, max_new_tokens=3, eos_token_id=9, pad_token_id=PAD, generator=seed())
    assert after[0].tolist() == [1, 9, 9, 3, 9, PAD, PAD]  # the prompt never counts

    model.denoiser.seen.clear()
    blocks = model.generate(
        max_length=8,
        block_length=2,
        eos_token_id=9,
        pad_token_id=PAD,
        max_denoising_steps=1,
    )
    assert blocks[0].tolist() == [9, 1, 2, 3, 9, PAD, PAD, PAD]
    assert len(model.denoiser.seen) == 3  # a text that has ended asks for no more blocks


def test_end_of_text_is_off_where_it_is_the_start_token():
    same = tiny_denoiser(bos_token_id=3, eos_token_id=3)
    assert same.generation_config.eos_token_id is None
    assert tiny_denoiser(bos_token_id=3, eos_token_id=4).generation_config.eos_token_id == 4


def test_stopping_criteria_end_the_text_between_blocks():
    model = echo(length=12)
    stop = StoppingCriteriaList([lambda ids, scores, **k: torch.ones(len(ids), dtype=torch.bool)])
    tokens = model.generate(
        max_length=8,
        block_length=3,
        stopping_criteria=stop,
        pad_token_id=PAD,
        generator=seed(),
    )
    assert tokens[0].tolist() == [0, 1, 2] + [PAD] * 5
    with pytest.raises(ValueError, match="no pad_token_id"):
        model.generate(max_length=8, block_length=3, stopping_criteria=stop, generator=seed())
    never = StoppingCriteriaList([MaxLengthCriteria(100)])
    assert (model.generate(max_length=8, block_length=3, stopping_criteria=never) != PAD).all()
