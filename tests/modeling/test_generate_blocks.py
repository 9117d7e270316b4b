"""Texts longer than the model, or longer than is wanted at once, come in blocks."""

import pytest
import torch
from composites import MASK, PAD
from echo_denoiser import echo
from published import seed, tiny_denoiser, with_ar


def test_blocks_carry_a_text_beyond_the_length_of_the_model():
    model = echo(length=6)
    model.generate(torch.tensor([[0, 1]]), max_new_tokens=11, block_length=3, generator=seed())
    model.denoiser.seen.clear()  # it was tried whether it sees padding
    tokens = model.generate(torch.tensor([[0, 1]]), max_new_tokens=11, block_length=3, generator=seed())
    assert tokens.shape == (1, 13)

    widths = {ids.shape[1] for ids, _ in model.denoiser.seen}
    assert widths == {6}
    last, _ = model.denoiser.seen[-1]
    # Four tokens of context before the last block of two
    assert torch.equal(last[0, :4], tokens[0, 7:11])

    first, attention = model.denoiser.seen[0]
    assert first[0, :2].tolist() == [0, 1]
    # Nothing behind the block
    assert attention[0].tolist() == [1, 1, 1, 1, 1, 0]


def test_text_that_fits_is_seen_whole_while_its_blocks_are_filled():
    model = echo(length=12)
    prompt = torch.tensor([[4, MASK, MASK, MASK]])
    model.generate(prompt, max_new_tokens=4, block_length=2, max_denoising_steps=1, generator=seed())
    filled = [(ids[0] == MASK).sum().item() for ids, _ in model.denoiser.seen]
    assert filled == [7, 4, 2]  # the masks of the prompt first, then two blocks of two
    assert all(ids.shape[1] == 8 for ids, _ in model.denoiser.seen)


def test_ragged_rows_in_blocks():
    ids, mask = torch.tensor([[1, 2, 3], [PAD, PAD, 4]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    model = tiny_denoiser(model_length=6)
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        block_length=2,
        generator=seed(),
    )
    assert tokens.shape == (2, 12) and torch.equal(tokens[:, :3], ids) and (tokens != MASK).all()


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_blocks_of_ragged_rows_can_be_weighed_by_themselves(energy_type):
    model = with_ar(energy_type=energy_type)
    ids, mask = torch.tensor([[1, 2, 3], [PAD, PAD, 4]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    options = {
        "block_length": 2,
        "max_denoising_steps": 1,
        "energy_scope": "revealed",
        "num_candidates": 3,
    }
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=4, generator=seed(), **options)
    assert tokens.shape == (2, 7) and torch.equal(tokens[:, :3], ids) and (tokens != MASK).all()


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_next_block_can_be_weighed_by_itself(energy_type):
    """T = 1 reveals a block at once, which an AR energy of the reveal set can weigh, and no other steps.

    The law that this gives is tested in test_generate_exact_reveal_sets.py.
    """
    model, steps = with_ar(energy_type=energy_type), {"max_denoising_steps": 1, "block_length": 2}
    out = model.generate(
        torch.tensor([[3, 1, 4]]).repeat(50, 1),
        max_new_tokens=4,
        energy_scope="revealed",
        num_candidates=3,
        generator=seed(),
        return_dict_in_generate=True,
        **steps,
    )
    assert out.energies.shape == (2, 50, 3)

    assert torch.isfinite(out.energies).all() and out.energies.std() > 0
    assert (out.sequences < MASK).all()

    first = torch.nn.functional.pad(torch.tensor([[3, 1, 4]]), (0, 4), value=MASK).repeat(50, 1)
    with pytest.raises(ValueError, match="needs every step to reveal the next tokens"):
        model.generate(first, energy_scope="revealed", max_denoising_steps=3, generator=seed())
