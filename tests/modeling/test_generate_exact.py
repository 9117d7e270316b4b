"""The shipped `generate()` against exact laws of its chain (invariants C1, C2, C5, C12, C13)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import MASK, L, TableCausalLM, chain_law, distance, frequencies, one_at_a_time_law, random_joint
from exact_sampling import (
    EMPTY,
    JOINT,
    PRODUCTS,
    TV,
    N,
    model,
    resampled_law,
    sample,
    table_energy,
)

from edlm_hf import EDLMForMaskedDiffusion


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_plain_chain_has_its_enumerated_law(steps):
    assert distance(sample(max_denoising_steps=steps), chain_law(PRODUCTS, steps)) < TV


@pytest.mark.parametrize("schedule", ["cosine", "cosinesqr"])
def test_other_schedules_have_their_enumerated_law(schedule):
    network, steps = model(), 3
    network.config.noise_schedule = schedule
    cos = np.cos(np.arange(steps + 1) / steps * np.pi / 2)
    alpha = cos if schedule == "cosine" else cos**2
    alpha[-1] = 0
    law = chain_law(PRODUCTS, steps, reveal=lambda n: (alpha[n - 1] - alpha[n]) / (1 - alpha[n]))
    assert distance(sample(network, max_denoising_steps=steps), law) < TV


@pytest.mark.parametrize("steps", [1, 3])
def test_two_candidates_have_the_law_of_their_formula(steps):
    tokens = sample(energy=table_energy, num_candidates=2, max_denoising_steps=steps)
    assert distance(tokens, chain_law(resampled_law(), steps)) < TV
    assert distance(tokens, chain_law(PRODUCTS, steps)) > 4 * TV


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (0.5, {2, 3, 4}),  # T = 4, t = 1/4 ... 1; the starting time 1/2 lies on the edge and counts
        (0.49, {3, 4}),
        (0.25, {3, 4}),
        ((0.0, 0.5), {1, 2}),
        ((0.25, 0.74), {1, 2}),
        ((0.6, 0.8), {3}),
        (1.0, {1, 2, 3, 4}),
    ],
)
def test_energy_acts_in_its_window_only(window, inside):
    tilted = resampled_law()
    law = chain_law(lambda n: tilted if n in inside else PRODUCTS, 4)
    tokens = sample(energy=table_energy, num_candidates=2, max_denoising_steps=4, energy_window=window)
    assert distance(tokens, law) < TV


def test_temperature_divides_the_energy():
    tokens = sample(
        energy=table_energy,
        num_candidates=2,
        max_denoising_steps=2,
        energy_temperature=0.5,
    )
    assert distance(tokens, chain_law(resampled_law(temperature=0.5), 2)) < TV


@pytest.mark.parametrize("steps", [1, 3])
def test_autoregressive_energy_of_the_model_acts_as_its_table(steps):
    p_ar = 0.6 * JOINT + 0.4 * random_joint(seed=11)
    with np.errstate(divide="ignore"):
        energies = np.log(PRODUCTS) - np.log(p_ar)
    network = model(energy=TableCausalLM(p_ar), energy_type="ar")
    law = chain_law(resampled_law(energies=np.where(np.isfinite(energies), energies, 0)), steps)
    assert distance(sample(network, num_candidates=2, max_denoising_steps=steps), law) < TV


def test_many_candidates_approach_the_autoregressive_law():
    network = model(energy=TableCausalLM(JOINT), energy_type="ar")
    few, many = (
        distance(sample(network, num_candidates=k, max_denoising_steps=2, ids=EMPTY[:50_000]), JOINT) for k in (2, 64)
    )
    assert many < 0.018 < 0.028 < few  # 50,000 draws alone make 0.012


def test_window_zero_and_one_candidate_are_plain_diffusion_bit_by_bit():
    ids = EMPTY[:2000]
    plain = sample(ids=ids, max_denoising_steps=5)
    refuse = lambda *inputs: pytest.fail("no energy may be asked for")  # noqa: E731
    for choice in (
        {"energy_window": 0},
        {"num_candidates": 1},
        {"energy_window": 0.0, "num_candidates": 4},
    ):
        assert torch.equal(sample(ids=ids, energy=refuse, max_denoising_steps=5, **choice), plain)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_constant_energy_changes_no_law(scope):
    constant = lambda candidates, *rest: torch.full(candidates.shape[:2], 7.0)  # noqa: E731
    tokens = sample(energy=constant, num_candidates=3, max_denoising_steps=3, energy_scope=scope)
    law = chain_law(PRODUCTS, 3)
    expected = law * N
    chi_square = ((frequencies(tokens) * N - expected) ** 2 / expected).sum()
    assert chi_square < 80 + 5 * np.sqrt(160)  # 80 degrees of freedom, five standard deviations


@pytest.mark.parametrize("energy", [None, table_energy])
def test_first_hitting_is_one_position_at_a_time(energy):
    one_by_one = PRODUCTS if energy is None else resampled_law()
    tokens = sample(sampler="first_hitting", energy=energy, num_candidates=2)
    assert distance(tokens, one_at_a_time_law(one_by_one)) < TV


def test_first_hitting_uses_the_window_row_by_row():
    calls = []

    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        calls.append((noisy_ids == MASK).sum(-1))
        return table_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask)

    out = sample(
        ids=EMPTY[:20_000],
        sampler="first_hitting",
        energy=energy,
        energy_window=0.5,
        return_dict_in_generate=True,
        num_candidates=2,
    )

    # a row's hitting times are four uniforms: on average two of them are above 1/2
    assert abs(out.num_energy_calls.double().mean() - 2) < 5 / np.sqrt(20_000)
    assert sum(map(len, calls)) == out.num_energy_calls.sum()
    assert (out.num_denoiser_calls == L).all()


def test_permuting_candidates_changes_no_energy_and_no_law():
    p_ar = 0.6 * JOINT + 0.4 * random_joint(seed=11)
    network = model(energy=TableCausalLM(p_ar), energy_type="ar")
    noisy = torch.tensor([[MASK] * 4, [1, MASK, MASK, 0]])
    candidates = torch.where(
        noisy.unsqueeze(1) == MASK,
        torch.randint(0, 3, (2, 6, L)),
        noisy.unsqueeze(1),
    )
    permutation = torch.randperm(6)
    assert torch.equal(
        network.energy(candidates, noisy)[:, permutation], network.energy(candidates[:, permutation], noisy)
    )

    reverse = lambda *inputs: table_energy(*inputs)  # noqa: E731
    flipped = lambda c, n, p, a: reverse(c.flip(1), n, p.flip(1), a).flip(1)  # noqa: E731
    one, two = (sample(ids=EMPTY[:4000], energy=e, max_denoising_steps=2) for e in (reverse, flipped))
    assert torch.equal(one, two)


@pytest.mark.parametrize("steps", [8, 64])
def test_number_of_calls_is_the_number_of_steps_that_reveal_something(steps):
    length, rows = 32, 1024

    class Uniform(torch.nn.Module):
        rows = calls = 0

        def forward(self, input_ids, attention_mask=None):
            assert (input_ids == MASK).any(-1).all()
            self.rows += len(input_ids)
            self.calls += 1
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))

    denoiser, energies = Uniform(), []

    def energy(candidate_ids, noisy_ids, *rest):
        energies.append(len(noisy_ids))
        return torch.zeros(candidate_ids.shape[:2])

    network = EDLMForMaskedDiffusion.from_components(denoiser, mask_token_id=MASK)
    ids = torch.full((rows, length), MASK)
    out = sample(
        network, ids, energy=energy, max_denoising_steps=steps, energy_window=0.5, return_dict_in_generate=True
    )
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(out.num_denoiser_calls.double().mean() / expected - 1) < 0.01
    assert out.num_denoiser_calls.sum() == denoiser.rows and denoiser.calls <= steps
    assert out.num_energy_calls.sum() == sum(energies)

    # in the window: the steps n with n / T >= 1/2, each of which reveals something with the same probability
    in_window = (steps - steps // 2 + 1) * (1 - (1 - 1 / steps) ** length)
    assert abs(out.num_energy_calls.double().mean() / in_window - 1) < 0.02
    torch.testing.assert_close(out.tokens_per_forward, length / out.num_denoiser_calls)
