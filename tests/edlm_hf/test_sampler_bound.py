"""The bound of the sampler with an energy, against enumeration, and where it is exact."""

import math

import numpy as np
import pytest
import torch
from enumerated_bounds import (
    ALL,
    ENERGY,
    JOINT,
    MARGINALS,
    PERTURBED,
    PRODUCTS,
    draws,
    marginalised_bound,
    model,
    table_energy,
)
from exact import MASK, SEQUENCES, L, TableCausalLM, chain_law

from edlm_hf.evaluation import discrete_nelbo, sampler_bound


@pytest.mark.parametrize("window", [1.0, 0.5])
def test_the_sampler_bound_holds_and_more_copies_tighten_it(window):
    steps = 3
    w = np.exp(-ENERGY)
    two = np.stack([2 * p * ((v[:, None] / (v[:, None] + v)) * p).sum(1) for p, v in zip(PRODUCTS, w, strict=True)])
    law = chain_law(lambda n: two if n / steps >= 1 - window - 1e-9 else PRODUCTS, steps)
    likelihood = -(np.log(law)).mean() / L
    options = {
        "num_steps": steps,
        "num_candidates": 2,
        "energy": table_energy(ENERGY),
        "energy_window": window,
    }
    bounds = [
        sampler_bound(model(), ALL, inner_copies=m, num_samples=64, batch_size=648, **options) for m in (1, 4, 16)
    ]
    for bound in bounds:
        assert likelihood < bound.value + 3 * bound.standard_error
    assert bounds[0].value > bounds[1].value > bounds[2].value

    # m -> infinity: L_T of the two-candidate law, marginalised over what a step does not reveal
    limit = marginalised_bound(lambda n: two if n / steps >= 1 - window - 1e-9 else PRODUCTS, steps)
    assert likelihood <= limit + 1e-9
    assert limit < bounds[2].value + 3 * bounds[2].standard_error

    finest = sampler_bound(model(), ALL, inner_copies=256, num_samples=64, batch_size=648, **options)
    assert abs(finest.value - limit) < 4 * finest.standard_error + (bounds[2].value - limit) / 8


def test_without_an_energy_that_acts_the_sampler_bound_is_the_discrete_one():
    network, options = model(), {"num_steps": 4, "num_samples": 4, "seed": 3}
    plain = discrete_nelbo(network, ALL, **options)
    energy = table_energy(ENERGY)
    assert sampler_bound(network, ALL, num_candidates=1, energy=energy, **options).value == plain.value
    assert sampler_bound(network, ALL, energy_window=0.0, energy=energy, **options).value == plain.value
    constant = sampler_bound(network, ALL, energy=table_energy(0 * ENERGY + 2.5), **options)
    assert constant.value == pytest.approx(plain.value, abs=1e-12)


def test_the_reveal_set_energy_needs_one_copy_where_the_sequence_energy_needs_many():
    def perfect(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        """-log q(x_S | x_t) + log p_theta(x_S | x_t) for whatever part of the masks is filled in."""
        energies = torch.zeros(candidate_ids.shape[:2], dtype=torch.float64)
        for b, j in np.ndindex(*energies.shape):
            given = torch.tensor(SEQUENCES)
            known = noisy_ids[b] != MASK
            filled = candidate_ids[b, j] != MASK
            agree = (given[:, known] == noisy_ids[b, known]).all(-1).numpy()
            hit = agree & (given[:, filled] == candidate_ids[b, j, filled]).all(-1).numpy()
            energies[b, j] = -math.log(JOINT[hit].sum() / JOINT[agree].sum())

        return energies + proposal_log_probs

    texts, options = draws(60, seed=2), {"num_steps": 2, "num_candidates": 4, "energy": perfect, "num_samples": 4}
    plain = discrete_nelbo(model(MARGINALS), texts, num_steps=2, num_samples=4)
    revealed = sampler_bound(model(MARGINALS), texts, energy_scope="revealed", **options)
    sequence = sampler_bound(model(MARGINALS), texts, energy_scope="sequence", **options)
    assert revealed.value < plain.value < sequence.value


def test_the_bound_is_that_of_the_temperature_that_generate_uses():
    energy, options = table_energy(ENERGY), {"num_steps": 2, "num_candidates": 2, "num_samples": 64, "batch_size": 648}
    w = np.exp(-ENERGY / 0.5)
    two = np.stack([2 * p * ((v[:, None] / (v[:, None] + v)) * p).sum(1) for p, v in zip(PRODUCTS, w, strict=True)])
    limit = marginalised_bound(lambda n: two, 2)
    close = sampler_bound(
        model(),
        ALL,
        energy=energy,
        energy_temperature=0.5,
        inner_copies=256,
        **options,
    )
    assert abs(close.value - limit) < 4 * close.standard_error + 0.004
    with pytest.raises(ValueError, match="'low_confidence'.*nearest sampler with one is 'top_k'"):
        sampler_bound(model(), ALL, sampler="low_confidence", **options)


def coins(step, proposal):
    return proposal.masked & (torch.rand(proposal.ids.shape) < 0.5)


def test_a_likelihood_is_exact_only_where_nothing_is_drawn():
    network, texts = model(), draws(4)
    exact = sampler_bound(network, texts, num_steps=2, num_samples=8, sampler="top_k")
    own = sampler_bound(
        network,
        texts,
        num_steps=2,
        num_samples=8,
        sampler=lambda step, x: x.confidence() > 0.4,
    )
    assert exact.standard_error == 0 and exact.num_samples == 4
    assert own.standard_error < 1e-12 and own.num_samples == 32
    for options in ({"sampler": coins}, {"sampler": "top_k", "corrector_sweeps": 1}):
        assert sampler_bound(network, texts, num_steps=2, num_samples=8, **options).standard_error > 0


@pytest.mark.parametrize("temperature", [1e-3, 1e6, math.inf])
def test_every_positive_energy_temperature_has_its_bound(temperature):
    options = {"num_steps": 3, "num_candidates": 3, "num_samples": 2}
    network = model(MARGINALS, TableCausalLM(JOINT), energy_type="ar")
    bound = sampler_bound(network, ALL, energy_temperature=temperature, **options)
    assert math.isfinite(bound.value)
    if temperature == math.inf:
        assert bound.value == pytest.approx(sampler_bound(network, ALL, energy_temperature=1e9, **options).value)


def test_texts_of_probability_zero_are_named():
    best = [int(PERTURBED[-1, i].argmax()) for i in range(L)]  # at the state of all masks
    worst = [int(PERTURBED[-1, i].argmin()) for i in range(L)]
    with pytest.raises(ValueError, match="Text 1 has probability zero"):
        sampler_bound(model(), [best, worst], num_steps=1, top_k=1)

    def broken(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        return torch.full(candidate_ids.shape[:2], torch.nan)

    with pytest.raises(ValueError, match="NaN"):
        sampler_bound(model(), ALL, num_steps=1, energy=broken)


def test_a_function_that_sees_masks_alone_has_a_bound():
    """It reveals the leftmost mask: the denoiser's likelihood from left to right."""

    def leftmost(step, proposal):
        first = proposal.masked.long().argmax(-1, keepdim=True)
        return torch.zeros_like(proposal.masked).scatter(1, first, True)

    leftmost.sees = "masks"
    leftmost.is_deterministic = True
    bounds = [
        sampler_bound(model(MARGINALS), ALL, sampler=leftmost, num_steps=L, whole_path=path) for path in (False, True)
    ]
    assert bounds[0].value == pytest.approx(bounds[1].value, abs=1e-12)

    # Without saying that it is not random
    del leftmost.is_deterministic
    bound = sampler_bound(model(MARGINALS), ALL, sampler=leftmost, num_steps=L, num_samples=2)
    assert bound.value == pytest.approx(bounds[0].value, abs=1e-12)
