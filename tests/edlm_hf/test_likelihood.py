"""Likelihoods against enumeration on the exact test-bed, the published terms, and their error bars."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    TableCausalLM,
    TableDenoiser,
    chain_law,
    marginals,
    perturbed,
    product_law,
    random_joint,
    state_index,
)
from published import golden, randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2, write_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, h_profile, nelbo, paper_nll, sampler_bound
from edlm_hf.evaluation.noising import Noised, RowNoise
from edlm_hf.evaluation.paper_likelihood import joint_nats
from edlm_hf.evaluation.step_costs import propose
from edlm_hf.modeling.masked_diffusion import make_schedule, reveal_probability

JOINT = random_joint()
ENTROPY = -(JOINT * np.log(JOINT)).sum()
MARGINALS = marginals(JOINT)
PERTURBED = perturbed(MARGINALS, seed=1)
ALL = torch.tensor(SEQUENCES)
ALL_MASKS = np.array([mask for mask in itertools.product([False, True], repeat=L) if any(mask)])  # (15, L)


def model(table=PERTURBED, energy=None, **choices) -> EDLMForMaskedDiffusion:
    return EDLMForMaskedDiffusion.from_components(TableDenoiser(table), energy, mask_token_id=MASK, **choices)


def draws(count: int, seed: int = 0) -> torch.Tensor:
    """Texts from q_0, (count, L)."""
    return ALL[np.random.default_rng(seed).choice(81, p=JOINT, size=count)]


def noised(clean, masked, t) -> Noised:
    """Rows with given masks."""
    count = len(clean)
    t = torch.as_tensor(t, dtype=torch.float64).expand(count)
    real = torch.ones_like(masked)
    chance = masked.double()
    return Noised(torch.arange(count), clean, real, real, masked, masked, chance, t, torch.ones(count), RowNoise([]))


def nats_at(process, rows) -> torch.Tensor:
    """-log p_theta^i(x_0^i | x_t) at the masks of the rows, (B, L)."""
    return propose(process, rows).nats(rows.clean)


def every_mask(network, nats) -> np.ndarray:
    """nats(process, rows) of every sequence with every non-empty set of masks: (81, 15)."""
    process = network.reverse_process()
    clean = ALL.repeat_interleave(len(ALL_MASKS), 0)
    masked = torch.tensor(ALL_MASKS).repeat(81, 1)
    return nats(process, noised(clean, masked, 0.5)).numpy().reshape(81, len(ALL_MASKS))


def denoiser_nats(network) -> np.ndarray:
    return every_mask(network, lambda process, rows: nats_at(process, rows).sum(-1))


def continuous(nats: np.ndarray) -> np.ndarray:
    """int_0^1 (1/t) E[nats] dt by enumeration: (81, 15) -> (81,); int t^(n-1) (1-t)^(L-n) dt = (n-1)! (L-n)! / L!."""
    n = ALL_MASKS.sum(-1)
    return nats @ np.array([math.factorial(k - 1) * math.factorial(L - k) / math.factorial(L) for k in n])


def stepwise(nats: np.ndarray, steps: int, reveal=lambda n: 1 / n) -> np.ndarray:
    """sum_n r_n E[nats at t_n] by enumeration for log-linear noise: (81,)."""
    masked = ALL_MASKS.sum(-1)
    shares = np.arange(1, steps + 1)[:, None] / steps
    chances = shares**masked * (1 - shares) ** (L - masked)  # (T, 15)
    return nats @ (np.array([reveal(n) for n in range(1, steps + 1)]) @ chances)


# ----------------------------------------------------------------------------------------------- bounds of the denoiser


@pytest.mark.parametrize("importance_sampling", [False, True])
def test_the_continuous_bound_has_its_enumerated_value(importance_sampling):
    network, texts = model(), draws(500)
    truth = continuous(denoiser_nats(network))[texts @ torch.tensor([27, 9, 3, 1])].mean() / L
    result = nelbo(network, texts, num_samples=16, importance_sampling=importance_sampling, batch_size=512)
    assert abs(result.value - truth) < 4 * result.standard_error
    assert result.standard_error < 0.01
    assert (result.num_samples, result.num_tokens, result.unit) == (8000, 2000, "nats/token")


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_discrete_bound_has_its_enumerated_value_above_the_likelihood_of_the_sampler(steps):
    network = model()
    by_text = stepwise(denoiser_nats(network), steps)
    products = np.stack([product_law(PERTURBED, s) for s in range(len(STATES))])
    law = chain_law(products, steps)
    assert ((-np.log(law)) <= by_text + 1e-9).all()  # the bound holds for every single text
    result = discrete_nelbo(network, ALL, num_steps=steps, num_samples=32, batch_size=648)
    assert abs(result.value - by_text.mean() / L) < 4 * result.standard_error + 1e-12  # T = 1 has no noise


def test_with_exact_marginals_revealing_one_token_at_a_time_loses_nothing():
    network = model(MARGINALS)
    assert (JOINT * continuous(denoiser_nats(network))).sum() == pytest.approx(ENTROPY, abs=1e-9)


def test_the_discrete_bound_falls_to_the_continuous_one_at_the_rate_of_the_profile():
    network = model()
    nats = denoiser_nats(network)
    limit = JOINT @ continuous(nats)
    gaps = [JOINT @ stepwise(nats, steps) - limit for steps in (64, 128)]
    h = [JOINT @ (nats @ (ALL_MASKS.sum(-1) == n)) / L for n in (1, L)]  # at t -> 0: one mask, each position equally
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.05)
    assert gaps[1] * 2 * 128 / L == pytest.approx(h[1] - h[0], rel=0.05)


def test_other_schedules_have_the_same_continuous_bound_and_their_own_discrete_one():
    network, steps = model(), 4
    nats = denoiser_nats(network)
    network.config.noise_schedule = "cosine"
    exact = nelbo(network, ALL, num_samples=32, batch_size=648)
    assert abs(exact.value - continuous(nats).mean() / L) < 4 * exact.standard_error
    alpha = np.cos(np.arange(steps + 1) / steps * np.pi / 2)
    alpha[-1] = 0
    share, masked = 1 - alpha[1:, None], ALL_MASKS.sum(-1)
    chances = share**masked * (1 - share) ** (L - masked)
    r = (alpha[:-1] - alpha[1:]) / (1 - alpha[1:])
    result = discrete_nelbo(network, ALL, num_steps=steps, num_samples=32, batch_size=648)
    assert abs(result.value - (nats @ (r @ chances)).mean() / L) < 4 * result.standard_error


@torch.no_grad()
def test_a_network_conditioned_on_time_is_integrated_over_time():
    network = tiny_denoiser(time_conditioning=True).double()
    texts = torch.tensor([[3, 1, 4]])
    masks = torch.tensor([mask for mask in itertools.product([False, True], repeat=3) if any(mask)])
    clean = texts.expand(len(masks), 3)
    process = network.reverse_process()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    truth = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        nats = nats_at(process, noised(clean, masks, t)).sum(-1).numpy()
        n = masks.sum(-1).numpy()
        truth += weight / t * (t**n * (1 - t) ** (3 - n) * nats).sum() / 3
    result = nelbo(network, texts, num_samples=4000, batch_size=500)
    assert abs(result.value - truth) < 4 * result.standard_error
    assert result.standard_error < 0.01 * truth


def test_the_error_bar_covers_the_truth_as_often_as_it_says():
    network, texts = model(), draws(20, seed=5)
    truth = continuous(denoiser_nats(network))[texts @ torch.tensor([27, 9, 3, 1])].mean() / L
    for num_samples in (2, 8):
        results = [nelbo(network, texts, num_samples=num_samples, batch_size=160, seed=seed) for seed in range(200)]
        covered = np.mean([abs(r.value - truth) < 1.96 * r.standard_error for r in results])
        assert 0.90 <= covered <= 0.99, (num_samples, covered)


def test_strata_of_times_make_the_error_smaller():
    network, texts = model(), draws(50, seed=6)
    spread = {}
    for num_samples in (2, 16):
        values = [nelbo(network, texts, num_samples=num_samples, batch_size=800, seed=seed).value for seed in range(30)]
        spread[num_samples] = np.std(values) * math.sqrt(num_samples)  # equal for independent samples
    assert spread[16] < 0.9 * spread[2]


# -------------------------------------------------------------------------------------------------------- sampler bound


def table_energy(energies: np.ndarray):
    """E(x, x_t) = energies[state, sequence] as a callable."""

    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        sequence = candidate_ids.numpy() @ (3 ** np.arange(L)[::-1])
        return torch.tensor(energies[state_index(noisy_ids.numpy())[:, None], sequence])

    return energy


PRODUCTS = np.stack([product_law(PERTURBED, s) for s in range(len(STATES))])
ENERGY = np.random.default_rng(3).normal(size=PRODUCTS.shape)


@pytest.mark.parametrize("window", [1.0, 0.5])
def test_the_sampler_bound_holds_and_more_copies_tighten_it(window):
    steps = 3
    w = np.exp(-ENERGY)
    two = np.stack([2 * p * ((v[:, None] / (v[:, None] + v)) * p).sum(1) for p, v in zip(PRODUCTS, w, strict=True)])
    law = chain_law(lambda n: two if n / steps >= 1 - window - 1e-9 else PRODUCTS, steps)
    likelihood = -(np.log(law)).mean() / L
    options = {"num_steps": steps, "num_candidates": 2, "energy": table_energy(ENERGY), "energy_window": window}
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


def marginalised_bound(joint_at, steps: int) -> float:
    """sum_n E_{x_t} E_S[-log P(x_0^S | x_t)] by enumeration, nats per token over all sequences alike."""
    bound = 0.0
    for n in range(1, steps + 1):
        t, r, joints = n / steps, 1 / n, joint_at(n)
        for mask in ALL_MASKS:
            noisy = np.where(mask, MASK, SEQUENCES)
            of_mask = t ** mask.sum() * (1 - t) ** (L - mask.sum())
            joint = joints[state_index(noisy)]  # (81, 81)
            for revealed in itertools.product([False, True], repeat=L):
                revealed = np.array(revealed)
                if (revealed & ~mask).any() or not revealed.any():
                    continue
                chance = r ** revealed.sum() * (1 - r) ** (mask.sum() - revealed.sum())
                agree = (SEQUENCES[:, None][:, :, revealed] == SEQUENCES[None][:, :, revealed]).all(-1)
                bound += of_mask * chance * -np.log((joint * agree).sum(-1)).mean() / L
    return bound


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
    close = sampler_bound(model(), ALL, energy=energy, energy_temperature=0.5, inner_copies=256, **options)
    assert abs(close.value - limit) < 4 * close.standard_error + 0.004
    with pytest.raises(ValueError, match="'low_confidence'.*nearest sampler with one is 'top_k'"):
        sampler_bound(model(), ALL, sampler="low_confidence", **options)


# ------------------------------------------------------------------------------------------------ the paper's estimator


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
    """Exact marginals of two fair bits that are equal; the mask is id 2."""

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
    bound = sampler_bound(network, [[0, 0], [1, 1]], energy=perfect, num_steps=1, inner_copies=64, num_samples=64)
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
    assert lower.value < truth + 3 * lower.standard_error and upper.value > truth - 3 * upper.standard_error
    assert abs(lower.value - truth) < 0.02 and abs(upper.value - truth) < 0.02


# ------------------------------------------------------------------------------------------------------------ published


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
    causal = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "ar", "model_ar", causal=True))
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


# ------------------------------------------------------------------------------------------------------- autoregressive


def test_the_likelihood_of_a_causal_model_is_the_direct_one():
    gpt2, ids = tiny_gpt2(), torch.randint(0, 11, (5, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        started = torch.nn.functional.pad(ids, (1, 0), value=11)
        direct = -gpt2(started).logits[:, :-1].double().log_softmax(-1).gather(-1, ids[..., None]).sum() / ids.numel()
        gpt2.config.bos_token_id = None
        without = -gpt2(ids[:, :-1]).logits.double().log_softmax(-1).gather(-1, ids[:, 1:, None]).sum() / (5 * 7)
    result = autoregressive_nll(gpt2, ids)
    assert result.value == pytest.approx(float(without), abs=1e-6)
    gpt2.config.bos_token_id = 11
    result = autoregressive_nll(gpt2, ids, batch_size=2)
    assert result.value == pytest.approx(float(direct), abs=1e-6)
    assert result.standard_error == 0 and result.text_standard_error > 0
    assert autoregressive_nll(gpt2, started).value == pytest.approx(float(direct), abs=1e-6)  # the start token is there


def test_our_own_causal_model_never_expects_the_mask():
    causal, ids = tiny_causal(bos_token_id=0), torch.randint(1, 12, (3, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = causal(torch.nn.functional.pad(ids, (1, 0))).logits[:, :-1, :12]
    direct = -logits.log_softmax(-1).gather(-1, ids[..., None]).mean()
    assert autoregressive_nll(causal, ids).value == pytest.approx(float(direct), abs=1e-5)


# ---------------------------------------------------------------------------------------- batches, padding, what counts


ESTIMATORS = {
    "nelbo": nelbo,
    "discrete_nelbo": lambda *a, **k: discrete_nelbo(*a, num_steps=5, **k),
    "sampler_bound": lambda *a, **k: sampler_bound(*a, num_steps=5, num_candidates=3, inner_copies=2, **k),
    "paper_nll": lambda *a, **k: paper_nll(*a, log_partition="lower", partition_samples=4, **k),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batches_and_padding_change_nothing(name):
    network = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=0), energy_type="ar")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 12, (n,), generator=generator).tolist() for n in (5, 12, 8, 1)]
    padded = torch.zeros(4, 12, dtype=torch.long)
    mask = torch.zeros(4, 12, dtype=torch.long)
    for i, row in enumerate(rows):  # on the right, on the left
        at = slice(0, len(row)) if i % 2 else slice(12 - len(row), 12)
        padded[i, at], mask[i, at] = torch.tensor(row), 1
    first = ESTIMATORS[name](network, rows, num_samples=4, batch_size=1)
    others = [
        ESTIMATORS[name](network, rows, num_samples=4, batch_size=7),
        ESTIMATORS[name](network, padded, mask, num_samples=4, batch_size=16),
    ]
    for other in others:
        assert other.value == pytest.approx(first.value, abs=1e-5)
        assert other.standard_error == pytest.approx(first.standard_error, abs=1e-5)
    assert ESTIMATORS[name](network, rows, num_samples=4, seed=1).value != first.value
    head = ESTIMATORS[name](network, rows[:2], num_samples=4)
    assert head.sequence_nats == pytest.approx(first.sequence_nats[:2], abs=1e-4)  # a text's noise is its own


def test_special_tokens_are_context_and_never_count():
    network = tiny_denoiser(bos_token_id=0, eos_token_id=11)
    texts = torch.tensor([[0, 3, 4, 5, 11], [0, 6, 7, 8, 11]])
    result = nelbo(network, texts, num_samples=4)
    assert result.num_tokens == 6
    explicit = torch.tensor([[False, True, True, True, False]] * 2)
    assert nelbo(tiny_denoiser(), texts, scored=explicit, num_samples=4).value == result.value


def test_a_visible_prompt_gives_the_conditional_bound():
    network, texts = model(MARGINALS), draws(400, seed=4)
    scored = torch.tensor([False, False, True, True]).expand(400, 4)
    result = nelbo(network, texts, scored=scored, num_samples=8, batch_size=800)
    prompt = np.array([JOINT[(SEQUENCES[:, :2] == x[:2]).all(-1)].sum() for x in SEQUENCES])
    truth = -np.log(JOINT / prompt)[texts @ torch.tensor([27, 9, 3, 1])].mean() / 2
    assert abs(result.value - truth) < 4 * result.standard_error


def test_units_follow_from_nats():
    result = nelbo(model(), ALL, num_samples=2)
    assert result.perplexity.value == pytest.approx(math.exp(result.value))
    assert result.bits_per("token").value == pytest.approx(result.value / math.log(2))
    assert result.bits_per("character", count=2 * 324).value == pytest.approx(result.value / math.log(2) / 2)
    assert set(result.to_dict()) >= {"value", "standard_error", "text_standard_error", "num_samples", "num_texts"}


def test_one_sample_per_text_has_the_error_bar_of_the_texts():
    result = nelbo(model(), draws(300), num_samples=1)
    assert result.standard_error == result.text_standard_error > 0


def test_the_profile_is_the_cross_entropy_per_mask():
    network, texts = model(), ALL
    nats = denoiser_nats(network)
    profile = h_profile(network, texts, times=(0.25, 1.0), num_samples=64, batch_size=648)
    masked = ALL_MASKS.sum(-1)
    for t, result in zip(profile.times, profile.entropies, strict=True):
        chances = t**masked * (1 - t) ** (L - masked)
        truth = (nats @ chances).mean() / (L * t)
        assert abs(result.value - truth) < 4 * result.standard_error
    assert len(profile.plot().containers) == 1


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no texts"),
        ([[]], {}, "none counts"),
        ([[1, 2], [0]], {}, "Text 1 .* none counts"),
        ([[1, 12]], {}, "mask token"),
        ([[1, 40]], {}, "ids from 1 to 40"),
        ([[1] * 13], {}, "at most 12.*document_windows"),
        ([[1, 2]], {"num_samples": 3}, "num_samples is 3"),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
        ([[1, 2]], {"attention_mask": torch.ones(1, 3)}, "differ in shape"),
    ],
)
def test_bad_texts_are_refused_with_advice(texts, options, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(bos_token_id=0), texts, **options)


def test_bad_arguments_are_refused_with_advice():
    network, texts = tiny_denoiser(), [[1, 2, 3]]
    with pytest.raises(ValueError, match="inner_copies is 0"):
        sampler_bound(network, texts, num_steps=2, inner_copies=0)
    with pytest.raises(ValueError, match="max_denoising_steps is 0"):
        discrete_nelbo(network, texts, num_steps=0)
    with pytest.raises(ValueError, match="log_partition is 'both'"):
        paper_nll(network, texts, log_partition="both")
    with pytest.raises(ValueError, match="times is"):
        h_profile(network, texts, times=(0.0, 0.5))
    with pytest.raises(ValueError, match="from_components"):
        nelbo(tiny_gpt2(), texts)
    for bound in (sampler_bound, paper_nll):
        steps = {"num_steps": 4} if bound is sampler_bound else {}
        with pytest.raises(ValueError, match="no use for max_new_tokens here.*energy_window"):
            bound(network, texts, max_new_tokens=5, **steps)
    with pytest.raises(ValueError, match="no use for max_denoising_steps here"):
        sampler_bound(network, texts, num_steps=4, max_denoising_steps=99)
    with pytest.raises(ValueError, match="first one is context"):
        autoregressive_nll(tiny_gpt2(bos_token_id=None), [[1]])


@pytest.mark.parametrize("kind", ["denoiser", "none", "nce", "bert"])
def test_a_model_that_is_not_causal_has_no_autoregressive_likelihood(kind):
    if kind == "bert":
        sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        network = randomised(BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)))
    else:
        options = {"energy_type": "nce"} if kind == "nce" else {}
        network = tiny_denoiser()
        if kind != "denoiser":
            network = EDLMForMaskedDiffusion.from_components(network, **options)
    with pytest.raises(ValueError, match="from later ones too.*nelbo"):
        autoregressive_nll(network, [[1, 2, 3]])


def test_the_bound_of_the_denoiser_is_the_same_however_the_model_is_set_to_sample():
    network, texts = tiny_denoiser(), [[1, 2, 3], [4, 5, 6]]
    plain = discrete_nelbo(network, texts, num_steps=3)
    network.generation_config.update(do_sample=False, block_length=2, sampler="first_hitting", temperature=0.3)
    assert discrete_nelbo(network, texts, num_steps=3) == plain


def coins(step, proposal):
    return proposal.masked & (torch.rand(proposal.ids.shape) < 0.5)


def test_a_likelihood_is_exact_only_where_nothing_is_drawn():
    network, texts = model(), draws(4)
    exact = sampler_bound(network, texts, num_steps=2, num_samples=8, sampler="top_k")
    own = sampler_bound(network, texts, num_steps=2, num_samples=8, sampler=lambda step, x: x.confidence() > 0.4)
    assert exact.standard_error == 0 and exact.num_samples == 4
    assert own.standard_error < 1e-12 and own.num_samples == 32
    for options in ({"sampler": coins}, {"sampler": "top_k", "corrector_sweeps": 1}):
        assert sampler_bound(network, texts, num_steps=2, num_samples=8, **options).standard_error > 0


def test_the_papers_estimator_has_its_energy_with_one_candidate_too():
    network, texts = model(MARGINALS, TableCausalLM(JOINT), energy_type="coar"), draws(20)
    plain = paper_nll(network, texts, num_samples=2)
    network.generation_config.update(num_candidates=1)
    assert paper_nll(network, texts, num_samples=2) == plain != nelbo(network, texts, num_samples=2)


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


@pytest.mark.parametrize("kind", ["denoiser", "ar", "nce"])
def test_any_default_device_gives_the_same_likelihoods(kind):
    """The default is `meta` here, where nothing can be computed: every tensor must say where it is."""
    model = tiny_denoiser()
    if kind == "ar":
        model = EDLMForMaskedDiffusion.from_components(model, tiny_causal(bos_token_id=10))
    if kind == "nce":
        model = EDLMForMaskedDiffusion.from_components(model, randomised(EDLMEnergyModel(tiny_config())))
    texts = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(texts)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "num_samples": 2}

    def values():
        yield nelbo(model, texts, importance_sampling=True, **options).value
        yield discrete_nelbo(model, texts.tolist(), num_steps=3, num_samples=2).value
        yield sampler_bound(model, texts, num_steps=3, num_candidates=2, inner_copies=2, **options).value
        yield paper_nll(model, texts, log_partition="upper", partition_samples=3, **options).value
        yield h_profile(model, texts, times=[0.5, 1]).entropies[0].value
        if kind == "ar":
            yield autoregressive_nll(model, texts, mask).value

    expected = list(values())
    with torch.device("meta"):
        assert list(values()) == expected


def test_the_bound_of_a_great_many_steps_is_that_of_continuous_time():
    """T costs neither time nor memory: with T = 10^9 the noise levels differ by less than rounding."""
    texts = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    options = {"num_samples": 256, "seed": 1}
    bound = discrete_nelbo(tiny_denoiser(), texts, num_steps=10**9, **options)
    limit = nelbo(tiny_denoiser(), texts, **options)
    assert abs(bound.value - limit.value) < 5 * (bound.standard_error + limit.standard_error)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["abc"], "tokenize it first"),
        ("abc", "input_ids is a str"),
        (None, "input_ids is a NoneType"),
        (iter([[3, 4]]), "or n lists of ids"),
        ([[3.7, 4.2]], "token ids are whole numbers"),
    ],
)
def test_what_are_no_token_ids_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(), inputs)


@pytest.mark.parametrize("seed", [1.5, None, -1, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="must be a whole number of at least 0"):
        nelbo(tiny_denoiser(), [[3, 4]], seed=seed)


@pytest.mark.parametrize("value", ["2", 2.0, 2.5, None, True, 0])
@pytest.mark.parametrize("name", ["num_samples", "batch_size", "inner_copies"])
def test_numbers_of_samples_rows_and_copies_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, but it must be"):
        sampler_bound(tiny_denoiser(), [[3, 4]], num_steps=2, num_candidates=1, **{name: value})


def test_a_number_of_partition_samples_is_a_whole_number():
    with pytest.raises(ValueError, match="partition_samples is 2.5, but it must be an integer of at least 2"):
        paper_nll(tiny_denoiser(), [[3, 4]], partition_samples=2.5, log_partition="lower")


@pytest.mark.parametrize("name", ["attention_mask", "scored"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2), "differ in shape"),
        ([True, True], "differ in shape"),
        (torch.ones(2, 2, 1), "differ in shape"),
        (torch.full((2, 2), math.nan), "values besides 0 and 1"),
        (torch.tensor([[0.3, 0.9], [1.0, 1.0]]), "values besides 0 and 1"),
        ([[0, 3], [1, 1]], "values besides 0 and 1"),
        ("yes", "holds no 0 and 1"),
        (1, "holds no 0 and 1"),
    ],
)
def test_a_mask_has_one_0_or_1_for_every_token(name, mask, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(), [[3, 4], [5, 6]], **{name: mask})


def test_a_mask_of_0_and_1_of_any_type_leaves_out_the_same_tokens():
    options = {"num_samples": 2, "seed": 1}
    expected = nelbo(tiny_denoiser(), [[3, 4], [5]], **options).value
    for mask in ([[1, 1], [1, 0]], np.array([[True, True], [True, False]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])):
        assert nelbo(tiny_denoiser(), [[3, 4], [5, 6]], mask, **options).value == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [[0.5, 1.5], [0, -1], 3, "ab", [0]])
def test_texts_are_numbered_by_whole_numbers(numbers):
    with pytest.raises(ValueError, match="[Tt]he number of a text is|numbers of the texts are|There are 1 numbers"):
        nelbo(tiny_denoiser(), [[3, 4], [5, 6]], text_numbers=numbers)


@pytest.mark.parametrize("times", [0.5, "a", [None], [math.nan]])
def test_times_are_several_numbers(times):
    with pytest.raises(ValueError, match=r"times is .*, but .* in \(0, 1\]"):
        h_profile(tiny_denoiser(), [[3, 4]], times=times)


@pytest.mark.parametrize("count", [0, -3, math.nan, math.inf, "12"])
def test_bits_are_per_a_positive_number_of_units(count):
    found = nelbo(tiny_denoiser(), [[3, 4]], num_samples=2)
    with pytest.raises(ValueError, match=f"count is {count!r}, but it must be a positive number: the characters"):
        found.bits_per("character", count)
