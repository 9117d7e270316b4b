"""Bounds of the denoiser against enumeration on the exact test-bed.

Also their error bars, and what counts in a text.
"""

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


def numbers_of(texts: torch.Tensor) -> torch.Tensor:
    """Indices into SEQUENCES of complete texts (n, L)."""
    return texts @ torch.tensor([27, 9, 3, 1])


@pytest.mark.parametrize("importance_sampling", [False, True])
def test_the_continuous_bound_has_its_enumerated_value(importance_sampling):
    network = model()
    texts = draws(500)
    by_text = continuous(denoiser_nats(network))
    truth = by_text[numbers_of(texts)].mean() / L

    result = nelbo(
        network,
        texts,
        num_samples=16,
        importance_sampling=importance_sampling,
        batch_size=512,
    )
    assert abs(result.value - truth) < 4 * result.standard_error
    assert result.standard_error < 0.01
    assert result.num_samples == 8000
    assert result.num_tokens == 2000
    assert result.unit == "nats/token"


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_discrete_bound_has_its_enumerated_value_above_the_likelihood_of_the_sampler(steps):
    network = model()
    by_text = stepwise(denoiser_nats(network), steps)

    # the bound holds for every single text
    products = np.stack([product_law(PERTURBED, s) for s in range(len(STATES))])
    law = chain_law(products, steps)
    assert (-np.log(law) <= by_text + 1e-9).all()

    result = discrete_nelbo(network, ALL, num_steps=steps, num_samples=32, batch_size=648)
    # T = 1 has no noise
    assert abs(result.value - by_text.mean() / L) < 4 * result.standard_error + 1e-12


def test_with_exact_marginals_revealing_one_token_at_a_time_loses_nothing():
    by_text = continuous(denoiser_nats(model(MARGINALS)))
    assert (JOINT * by_text).sum() == pytest.approx(ENTROPY, abs=1e-9)


def test_the_discrete_bound_falls_to_the_continuous_one_at_the_rate_of_the_profile():
    nats = denoiser_nats(model())
    limit = JOINT @ continuous(nats)
    gap_64 = JOINT @ stepwise(nats, 64) - limit
    gap_128 = JOINT @ stepwise(nats, 128) - limit
    assert gap_64 / gap_128 == pytest.approx(2, abs=0.05)

    # the gap is L (h(1) - h(0)) / (2 T). At t -> 0 there is one mask, each position equally
    num_masked = ALL_MASKS.sum(-1)
    h_0 = JOINT @ (nats @ (num_masked == 1)) / L
    h_1 = JOINT @ (nats @ (num_masked == L)) / L
    assert gap_128 * 2 * 128 / L == pytest.approx(h_1 - h_0, rel=0.05)


def test_other_schedules_have_the_same_continuous_bound_and_their_own_discrete_one():
    network = model()
    nats = denoiser_nats(network)
    network.config.noise_schedule = "cosine"
    result = nelbo(network, ALL, num_samples=32, batch_size=648)
    truth = continuous(nats).mean() / L
    assert abs(result.value - truth) < 4 * result.standard_error

    # every step: the chance of each set of masks at t, (T, 15), and of a reveal, (T,)
    steps = 4
    alpha = np.cos(np.arange(steps + 1) / steps * np.pi / 2)
    alpha[-1] = 0
    masked_share = 1 - alpha[1:, None]
    num_masked = ALL_MASKS.sum(-1)
    chances = masked_share**num_masked * (1 - masked_share) ** (L - num_masked)
    reveal = (alpha[:-1] - alpha[1:]) / (1 - alpha[1:])

    result = discrete_nelbo(network, ALL, num_steps=steps, num_samples=32, batch_size=648)
    truth = (nats @ (reveal @ chances)).mean() / L
    assert abs(result.value - truth) < 4 * result.standard_error


@torch.no_grad()
def test_a_network_conditioned_on_time_is_integrated_over_time():
    network = tiny_denoiser(time_conditioning=True).double()
    process = network.reverse_process()
    texts = torch.tensor([[3, 1, 4]])
    subsets = [mask for mask in itertools.product([False, True], repeat=3) if any(mask)]
    masks = torch.tensor(subsets)
    num_masked = masks.sum(-1).numpy()
    clean = texts.expand(len(masks), 3)

    # int_0^1 (1 / t) E[nats at t] dt, by Gauss-Legendre
    truth = 0.0
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        nats = nats_at(process, noised(clean, masks, t)).sum(-1).numpy()
        chances = t**num_masked * (1 - t) ** (3 - num_masked)
        truth += weight / t * (chances * nats).sum() / 3

    result = nelbo(network, texts, num_samples=4000, batch_size=500)
    assert abs(result.value - truth) < 4 * result.standard_error
    assert result.standard_error < 0.01 * truth


def test_the_error_bar_covers_the_truth_as_often_as_it_says():
    network = model()
    texts = draws(20, seed=5)
    by_text = continuous(denoiser_nats(network))
    truth = by_text[numbers_of(texts)].mean() / L

    for num_samples in (2, 8):
        covered = 0
        for seed in range(200):
            result = nelbo(network, texts, num_samples=num_samples, batch_size=160, seed=seed)
            covered += abs(result.value - truth) < 1.96 * result.standard_error
        assert 0.90 <= covered / 200 <= 0.99, (num_samples, covered)


def test_strata_of_times_make_the_error_smaller():
    network = model()
    texts = draws(50, seed=6)

    def spread(num_samples):
        """sqrt(n) times the standard deviation: the same for every n if samples are independent."""
        values = []
        for seed in range(30):
            result = nelbo(network, texts, num_samples=num_samples, batch_size=800, seed=seed)
            values.append(result.value)
        return np.std(values) * math.sqrt(num_samples)

    assert spread(16) < 0.9 * spread(2)


def test_special_tokens_are_context_and_never_count():
    network = tiny_denoiser(bos_token_id=0, eos_token_id=11)
    texts = torch.tensor([[0, 3, 4, 5, 11], [0, 6, 7, 8, 11]])
    result = nelbo(network, texts, num_samples=4)
    assert result.num_tokens == 6

    scored = torch.tensor([[False, True, True, True, False]] * 2)
    explicit = nelbo(tiny_denoiser(), texts, scored=scored, num_samples=4)
    assert explicit.value == result.value


def test_a_visible_prompt_gives_the_conditional_bound():
    texts = draws(400, seed=4)
    scored = torch.tensor([False, False, True, True]).expand(400, 4)
    result = nelbo(model(MARGINALS), texts, scored=scored, num_samples=8, batch_size=800)

    # q_0 of the first two tokens of every sequence: (81,)
    prompt = np.zeros(len(SEQUENCES))
    for i, sequence in enumerate(SEQUENCES):
        same_prompt = (SEQUENCES[:, :2] == sequence[:2]).all(-1)
        prompt[i] = JOINT[same_prompt].sum()

    conditional_nats = -np.log(JOINT / prompt)
    truth = conditional_nats[numbers_of(texts)].mean() / 2
    assert abs(result.value - truth) < 4 * result.standard_error


def test_units_follow_from_nats():
    result = nelbo(model(), ALL, num_samples=2)
    assert result.perplexity.value == pytest.approx(math.exp(result.value))

    bits = result.value / math.log(2)
    per_character = result.bits_per("character", count=2 * 324)
    assert result.bits_per("token").value == pytest.approx(bits)
    assert per_character.value == pytest.approx(bits / 2)

    names = {"value", "standard_error", "text_standard_error", "num_samples", "num_texts"}
    assert names <= set(result.to_dict())


def test_one_sample_per_text_has_the_error_bar_of_the_texts():
    result = nelbo(model(), draws(300), num_samples=1)
    assert result.standard_error == result.text_standard_error > 0


def test_the_profile_is_the_cross_entropy_per_mask():
    network = model()
    nats = denoiser_nats(network)  # (81, 15)
    profile = h_profile(network, ALL, times=(0.25, 1.0), num_samples=64, batch_size=648)
    num_masked = ALL_MASKS.sum(-1)

    for t, result in zip(profile.times, profile.entropies, strict=True):
        chances = t**num_masked * (1 - t) ** (L - num_masked)
        truth = (nats @ chances).mean() / (L * t)
        assert abs(result.value - truth) < 4 * result.standard_error

    assert len(profile.plot().containers) == 1


def test_the_bound_of_the_denoiser_is_the_same_however_the_model_is_set_to_sample():
    network = tiny_denoiser()
    texts = [[1, 2, 3], [4, 5, 6]]
    plain = discrete_nelbo(network, texts, num_steps=3)
    network.generation_config.update(
        do_sample=False,
        block_length=2,
        sampler="first_hitting",
        temperature=0.3,
    )
    assert discrete_nelbo(network, texts, num_steps=3) == plain


def test_the_bound_of_a_great_many_steps_is_that_of_continuous_time():
    """T costs neither time nor memory.

    With T = 10^9 the noise levels differ by less than rounding.
    """
    texts = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    options = {"num_samples": 256, "seed": 1}
    bound = discrete_nelbo(tiny_denoiser(), texts, num_steps=10**9, **options)
    limit = nelbo(tiny_denoiser(), texts, **options)
    error = bound.standard_error + limit.standard_error
    assert abs(bound.value - limit.value) < 5 * error


@pytest.mark.parametrize("num_samples", [1, 2, 16])
def test_more_noise_does_not_shrink_the_spread_over_texts(num_samples):
    network = model()
    texts = draws(60)
    profile = h_profile(network, texts, times=(1.0,), num_samples=num_samples)

    # At t = 1 all is masked, so that there is no noise
    one_step = discrete_nelbo(network, texts, num_steps=1, num_samples=2)
    nats = torch.tensor(one_step.sequence_nats)
    expected = nats.std(unbiased=True) / len(texts) ** 0.5 / L
    (entropy,) = profile.entropies
    assert entropy.standard_error == pytest.approx(float(expected), rel=1e-5)
    assert entropy.num_samples == len(texts)
