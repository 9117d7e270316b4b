"""The noise of a row depends on its own number alone."""

import numpy as np
import pytest
import torch
from published import tiny_denoiser
from training import blocks

from edlm_hf.evaluation import discrete_nelbo, nelbo
from edlm_hf.training.row_noise import row_uniforms


def test_numbers_of_a_row_do_not_depend_on_other_rows_and_padding():
    key = 42, 0, 7
    shift, scalars, wide, wider = row_uniforms(key, range(6), (), (9,), (9, 2))
    again, few, narrow, narrower = row_uniforms(key, [5, 2], (), (4,), (4, 2))
    assert shift == again
    assert torch.equal(few, scalars[[5, 2]])
    assert torch.equal(narrow, wide[[5, 2], :4])
    assert torch.equal(narrower, wider[[5, 2], :4])


def test_numbers_of_other_keys_rows_and_shapes_are_others():
    numbers = []
    for key in ((0, 0, 1), (0, 0, 2), (1, 0, 1), (0, 1)):
        for part in row_uniforms(key, range(3), (), (40,), (40,)):
            numbers += part.flatten().tolist()

    assert len(set(numbers)) == len(numbers)


def test_numbers_of_rows_are_uniform_and_independent():
    (_, drawn) = row_uniforms((3, 0, 5), range(400), (500,))
    flat = drawn.flatten()
    assert 0 <= flat.min()
    assert flat.max() < 1

    # the variance is 1 / 12
    error = (1 / 12 / len(flat)) ** 0.5
    assert flat.mean() == pytest.approx(0.5, abs=4 * error)

    # neighbouring rows, then neighbouring columns
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        correlation = np.corrcoef(a.flatten(), b.flatten())[0, 1]
        assert abs(correlation) < 4 / a.numel() ** 0.5


def test_texts_have_the_noise_of_their_numbers():
    texts = blocks(np.random.default_rng(0).integers(0, 12, (6, 8)))["input_ids"]
    model = tiny_denoiser()
    options = {"num_samples": 2, "seed": 3}
    whole = nelbo(model, texts, **options)
    part = nelbo(model, texts[2:5], text_numbers=[2, 3, 4], **options)
    assert part.sequence_nats == pytest.approx(whole.sequence_nats[2:5], abs=1e-5)

    # times on a lattice over the texts
    options = {"num_samples": 1, "seed": 3, "num_steps": 4}
    whole = discrete_nelbo(model, texts, **options)
    part = discrete_nelbo(model, texts[4:], text_numbers=(4, 5), **options)
    assert part.sequence_nats == pytest.approx(whole.sequence_nats[4:], abs=1e-5)

    with pytest.raises(ValueError, match="2 numbers for 6 texts"):
        nelbo(model, texts, text_numbers=[0, 1])
