"""Functions of users inside `generate()`: what processors and energies may return and change."""

import pytest
import torch
from composites import MASK, PAD
from published import seed, tiny_denoiser


def test_processors_cannot_bring_the_mask_back():
    level = [lambda ids, scores: torch.zeros_like(scores)]
    only = [lambda ids, scores: scores.new_full(scores.shape, -torch.inf).index_fill(1, torch.tensor([MASK]), 0.0)]
    for options in ({}, {"do_sample": False}, {"top_k": 3}, {"top_p": 0.5, "temperature": 2.0}):
        tokens = tiny_denoiser().generate(
            batch_size=20, max_denoising_steps=3, logits_processor=level, generator=seed(), **options
        )
        assert (tokens != MASK).all()
        with pytest.raises(ValueError, match="no token left"):
            tiny_denoiser().generate(logits_processor=only, **options)


def test_a_table_that_a_processor_returns_stays_as_it_is():
    table = torch.zeros(12, 13)
    tiny_denoiser().generate(
        max_denoising_steps=1,
        logits_processor=[lambda ids, scores: table],
        temperature=0.5,
    )
    assert (table == 0).all()


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda ids, scores: None, r"returned NoneType, but scores of shape \(\d+, 13\)"),
        (lambda ids, scores: scores[:, :1], r"returned torch.float32 of shape \(\d+, 1\)"),
        (lambda ids, scores: scores[:1].repeat(99, 1), r"of shape \(99, 13\)"),
        (lambda ids, scores: scores.long(), "returned torch.int64"),
        (lambda ids, scores: scores.tolist(), "returned list"),
        (lambda ids, scores: scores * torch.nan, "or NaN"),
        (lambda ids, scores: scores + torch.inf, "or NaN"),
    ],
)
def test_processors_that_return_no_scores_are_refused(processor, message, do_sample):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(
            logits_processor=[processor],
            do_sample=do_sample,
            max_denoising_steps=2,
        )


def writes_into_noisy(candidates, noisy, log_probs, attention_mask):
    noisy[noisy == MASK] = 0
    return candidates.double().mean(-1)


def writes_into_all(candidates, noisy, log_probs, attention_mask):
    energies = candidates.double().mean(-1)
    for tensor in (candidates, noisy, log_probs, attention_mask):
        tensor.zero_()
    return energies


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
@pytest.mark.parametrize("energy", [writes_into_noisy, writes_into_all])
def test_energies_may_write_into_what_they_are_given(energy, scope):
    def clean(candidates, noisy, log_probs, attention_mask):
        return candidates.double().mean(-1)

    ids, mask = torch.tensor([[3, MASK, 4], [5, 6, PAD]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    options = {
        "max_new_tokens": 4,
        "max_denoising_steps": 3,
        "num_candidates": 3,
        "energy_scope": scope,
    }
    one, two = (
        tiny_denoiser().generate(ids, mask, energy=e, generator=seed(), return_dict_in_generate=True, **options)
        for e in (energy, clean)
    )
    assert torch.equal(one.sequences, two.sequences)
    assert torch.equal(one.energies.nan_to_num(-1), two.energies.nan_to_num(-1))


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda c, *rest: torch.zeros(len(c)), r"returned \(1,\), but a tensor of shape \(1, 8\)"),
        (lambda c, *rest: torch.zeros(c.shape[:2], dtype=torch.complex64), "complex64"),
        (lambda c, *rest: torch.zeros(c.shape[:2], device="meta"), "meta"),
        (lambda c, *rest: c.double().mean(-1).tolist(), "returned list"),
        (lambda c, *rest: None, "returned NoneType"),
        (lambda c, *rest: torch.full(c.shape[:2], torch.nan), "NaN or -inf"),
    ],
)
def test_energies_that_are_none_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(energy=energy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_energies_of_any_number_type(dtype):
    out = tiny_denoiser().generate(
        energy=lambda c, *rest: (c.sum(-1) % 2).to(dtype), return_dict_in_generate=True, max_denoising_steps=2
    )
    assert out.energies.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_energies_may_keep_a_graph():
    weight = torch.nn.Parameter(torch.ones(()))

    def energy(candidates, *rest):
        with torch.enable_grad():
            return candidates.float().mean(-1) * weight

    out = tiny_denoiser().generate(energy=energy, return_dict_in_generate=True, max_denoising_steps=2)
    assert not out.energies.requires_grad and weight.grad is None
