"""The paper's estimator by enumeration, and its terms and those of the bounds beside the published ones."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from enumerated_bounds import (
    ALL,
    ALL_MASKS,
    ENTROPY,
    JOINT,
    MARGINALS,
    PERTURBED,
    continuous,
    draws,
    every_mask,
    model,
    nats_at,
    noised,
)
from exact import SEQUENCES, L, TableCausalLM
from published import golden, write_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, EDLMGenerationConfig
from edlm_hf.evaluation import autoregressive_nll, h_profile, nelbo, paper_nll, sampler_bound
from edlm_hf.evaluation.paper_likelihood import joint_nats
from edlm_hf.modeling.masked_diffusion import make_schedule, reveal_probability


def test_the_papers_estimator_falls_below_the_entropy_with_the_exact_joint():
    network = model(MARGINALS, TableCausalLM(JOINT), energy_type="ar")
    nats = every_mask(network, lambda process, rows: joint_nats(process, rows, "one", 2))
    # Z(x_t) of EDLM-AR is the AR marginal of what is visible: with it the bracket is -log q(x_0 | x_t)
    visible = np.array([[JOINT[agree(x, mask)].sum() for mask in ALL_MASKS] for x in SEQUENCES])
    posterior = np.array([[-np.log(q / z) for z in row] for q, row in zip(JOINT, visible, strict=True)])
    assert np.abs(nats + np.log(visible) - posterior).max() < 1e-9
    assert JOINT @ continuous(posterior) < ENTROPY - 0.1


def agree(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (mask | (SEQUENCES == x)).all(-1)


class TwoEqualBits(torch.nn.Module):
    """Exact marginals of two fair bits that are equal. The mask is id 2."""

    def forward(self, input_ids, attention_mask=None):
        other = input_ids.flip(1).unsqueeze(-1)
        known = torch.where(other == torch.arange(3), 0.0, -torch.inf)
        return SimpleNamespace(logits=torch.where(other == 2, torch.tensor([0.0, 0.0, 0.0]), known))


def test_two_equal_fair_bits_have_half_a_bit_in_the_papers_estimator():
    def perfect(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        equal = candidate_ids[..., 0] == candidate_ids[..., 1]
        both = (noisy_ids == 2).all(-1, keepdim=True)
        return torch.where(both & equal, -math.log(2), torch.where(equal, 0.0, torch.inf))

    network = EDLMForMaskedDiffusion.from_components(TwoEqualBits(), mask_token_id=2)
    result = paper_nll(network, [[0, 0], [1, 1]], energy=perfect, num_samples=4)
    assert result.value * 2 == pytest.approx(math.log(2) / 2, abs=1e-6)  # the entropy is log 2

    bound = sampler_bound(
        network,
        [[0, 0], [1, 1]],
        energy=perfect,
        num_steps=1,
        inner_copies=64,
        num_samples=64,
    )
    assert bound.value * 2 > math.log(2) - 3 * bound.standard_error


def test_the_papers_estimator_of_coar_is_the_autoregressive_likelihood_whatever_the_denoiser():
    truth = -np.log(JOINT)
    for table in (MARGINALS, PERTURBED):
        network = model(table, TableCausalLM(JOINT), energy_type="coar")
        nats = every_mask(network, lambda process, rows: joint_nats(process, rows, "one", 2))
        assert np.abs(continuous(nats) - truth).max() < 1e-9
        exact = autoregressive_nll(network, ALL)
        assert np.abs(np.array(exact.sequence_nats) - truth).max() < 1e-9
        sampled = paper_nll(network, ALL, num_samples=8, batch_size=648)
        assert abs(sampled.value - exact.value) < 4 * sampled.standard_error


def test_estimates_of_the_partition_function_bracket_the_papers_estimator():
    network, texts = model(MARGINALS, TableCausalLM(JOINT), energy_type="ar"), draws(300)
    options = {"num_samples": 4, "batch_size": 600, "partition_samples": 64}
    lower, upper = (paper_nll(network, texts, log_partition=side, **options) for side in ("lower", "upper"))
    visible = np.array([[JOINT[agree(x, mask)].sum() for mask in ALL_MASKS] for x in SEQUENCES])
    posterior = -np.log(JOINT[:, None] / visible)
    truth = continuous(posterior)[texts @ torch.tensor([27, 9, 3, 1])].mean() / L
    assert lower.value < truth + 3 * lower.standard_error
    assert upper.value > truth - 3 * upper.standard_error
    assert abs(lower.value - truth) < 0.02 and abs(upper.value - truth) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [False, True])
def test_the_terms_of_the_bounds_are_the_published_ones(tmp_path, conditioned):
    data, tag = golden("e_nelbo"), "tc1" if conditioned else "tc0"
    network = AutoModelForMaskedLM.from_pretrained(
        write_checkpoint(tmp_path / "dit", "model_dit", time_conditioning=conditioned)
    )
    process = network.reverse_process()
    masked, t = data["xt"] == network.config.mask_token_id, data["t"].double()
    schedule = make_schedule("loglinear")
    nats = nats_at(process, noised(data["x0"], masked, t)).double()
    weight = schedule.rate(t) / schedule.total(t).expm1()
    close(weight[:, None] * nats, data[f"nelbo_cont_{tag}"])
    close(1 / t[:, None] * nats, data[f"nelbo_cont_{tag}"])

    if not conditioned:
        # Importance-sampled times: a constant weight, log(1 - exp(-sigma_max)) - log(1 - exp(-sigma_min)).
        ends = schedule.total(torch.tensor([0.0, 1.0], dtype=torch.float64))
        close(-math.log(-math.expm1(-schedule.eps)) * nats, data["nelbo_importance_tc0"])
        assert ends[0] == 0

        for case in ("T0", "T1"):  # at t = 1 / T the published form is 0/0 = NaN where ours is 1
            steps, times = int(data[f"{case}_value"]), data[f"{case}_t"].double()
            earlier = ((times * steps).round() - 1) / steps
            chance = reveal_probability(schedule.alpha(earlier), schedule.alpha(times))
            close(steps * chance[:, None] * nats, data[f"{case}_subs_tc0"])
    else:
        nats = nats_at(on_time(process), noised(data["x0"], masked, t)).double()
        close(-math.log(-math.expm1(-schedule.eps)) * nats, data["nelbo_cov_tc1"])


def on_time(process):
    """The change of variables hands the network t itself in place of sigma(t)."""
    schedule = SimpleNamespace(total=lambda t: t, alpha=process.schedule.alpha)
    return replace(process, schedule=schedule)


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_the_joint_of_the_papers_estimator_is_the_published_one(tmp_path, energy_type):
    data = golden("e_nelbo")
    denoiser = AutoModelForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit"))
    causal = AutoModelForCausalLM.from_pretrained(
        write_checkpoint(
            tmp_path / "ar",
            "model_ar",
            causal=True,
        )
    )
    network = EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type=energy_type)
    process = network.reverse_process()
    masked, t = data["xt"] == 32, data["t"].double()
    rows = noised(data["x0"], masked, t)
    ours = joint_nats(process, rows, "one", 2)

    # The published energy keeps the proposal's log-probability of a masked first token, which ours cancels.
    first = nats_at(process, rows)[:, 0].double()
    expected = data[f"edlm_{energy_type}_val"].double().sum(-1)
    close((ours - first) / t, expected)


def close(actual, expected):
    torch.testing.assert_close(actual.float(), expected.float(), rtol=1e-3, atol=1e-4)


def test_the_papers_estimator_has_its_energy_with_one_candidate_too():
    network, texts = model(MARGINALS, TableCausalLM(JOINT), energy_type="coar"), draws(20)
    plain = paper_nll(network, texts, num_samples=2)
    network.generation_config.update(num_candidates=1)
    assert paper_nll(network, texts, num_samples=2) == plain != nelbo(network, texts, num_samples=2)


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_estimates_without_a_sampler_do_not_depend_on_the_stored_one(energy_type):
    network = model(MARGINALS, TableCausalLM(JOINT), energy_type=energy_type)
    options = {"num_samples": 2, "batch_size": 81}

    def estimates(**stored) -> tuple[float, float, tuple]:
        network.generation_config = EDLMGenerationConfig(**stored)
        entropies = h_profile(network, ALL, times=(0.5, 1.0), **options).entropies
        return (
            paper_nll(network, ALL, energy_scope="sequence", **options).value,
            nelbo(network, ALL, **options).value,
            tuple(estimate.value for estimate in entropies),
        )

    expected = estimates()
    assert estimates(sampler="speculative") == expected
    assert estimates(sampler="edit", threshold=0.4) == expected
    assert estimates(sampler="low_confidence", energy_scope="revealed") == expected
    assert expected[0] != expected[1]  # the energy has a part in it

    with pytest.raises(ValueError, match="has no sampler, so that there is no use for sampler, threshold"):
        paper_nll(network, ALL, sampler="threshold", threshold=0.5)
