"""Bounds of the denoiser against enumeration on the exact test-bed, their error bars, and what counts in a text."""

import itertools
import math

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
    denoiser_nats,
    draws,
    model,
    nats_at,
    noised,
    stepwise,
)
from exact import SEQUENCES, STATES, L, chain_law, product_law
from published import tiny_denoiser

from edlm_hf.evaluation import discrete_nelbo, h_profile, nelbo


@pytest.mark.parametrize("importance_sampling", [False, True])
def test_the_continuous_bound_has_its_enumerated_value(importance_sampling):
    network, texts = model(), draws(500)
    truth = continuous(denoiser_nats(network))[texts @ torch.tensor([27, 9, 3, 1])].mean() / L
    result = nelbo(
        network,
        texts,
        num_samples=16,
        importance_sampling=importance_sampling,
        batch_size=512,
    )
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
    # T = 1 has no noise
    assert abs(result.value - by_text.mean() / L) < 4 * result.standard_error + 1e-12


def test_with_exact_marginals_revealing_one_token_at_a_time_loses_nothing():
    network = model(MARGINALS)
    assert (JOINT * continuous(denoiser_nats(network))).sum() == pytest.approx(ENTROPY, abs=1e-9)


def test_the_discrete_bound_falls_to_the_continuous_one_at_the_rate_of_the_profile():
    network = model()
    nats = denoiser_nats(network)
    limit = JOINT @ continuous(nats)
    gaps = [JOINT @ stepwise(nats, steps) - limit for steps in (64, 128)]
    # At t -> 0: one mask, each position equally
    h = [JOINT @ (nats @ (ALL_MASKS.sum(-1) == n)) / L for n in (1, L)]
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
        # The products are equal for independent samples
        spread[num_samples] = np.std(values) * math.sqrt(num_samples)
    assert spread[16] < 0.9 * spread[2]


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


def test_the_bound_of_the_denoiser_is_the_same_however_the_model_is_set_to_sample():
    network, texts = tiny_denoiser(), [[1, 2, 3], [4, 5, 6]]
    plain = discrete_nelbo(network, texts, num_steps=3)
    network.generation_config.update(
        do_sample=False,
        block_length=2,
        sampler="first_hitting",
        temperature=0.3,
    )
    assert discrete_nelbo(network, texts, num_steps=3) == plain


def test_the_bound_of_a_great_many_steps_is_that_of_continuous_time():
    """T costs neither time nor memory: with T = 10^9 the noise levels differ by less than rounding."""
    texts = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    options = {"num_samples": 256, "seed": 1}
    bound = discrete_nelbo(tiny_denoiser(), texts, num_steps=10**9, **options)
    limit = nelbo(tiny_denoiser(), texts, **options)
    assert abs(bound.value - limit.value) < 5 * (bound.standard_error + limit.standard_error)


@pytest.mark.parametrize("num_samples", [1, 2, 16])
def test_more_noise_does_not_shrink_the_spread_over_texts(num_samples):
    # At t = 1 all is masked, so that there is no noise
    network, texts = model(), draws(60)
    profile = h_profile(network, texts, times=(1.0,), num_samples=num_samples)
    nats = nelbo_at_full_noise(network, texts)
    expected = nats.std(unbiased=True) / len(texts) ** 0.5 / L
    (entropy,) = profile.entropies
    assert entropy.standard_error == pytest.approx(float(expected), rel=1e-5)
    assert entropy.num_samples == len(texts)


def nelbo_at_full_noise(network, texts) -> torch.Tensor:
    """Nats of every text when one step reveals all of it: (n,)."""
    return torch.tensor(discrete_nelbo(network, texts, num_steps=1, num_samples=2).sequence_nats)
