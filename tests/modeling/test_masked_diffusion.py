"""The pure functions: schedules at their ends, SUBS, the reverse posterior, unbiased draws."""

import math

import numpy as np
import pytest
import torch
from published import golden

from edlm_hf.modeling.masked_diffusion import (
    SCHEDULES,
    make_schedule,
    reveal_probability,
    reverse_posterior,
    sample_categorical,
    subs_log_probs,
    token_log_probs,
    uniform,
)


def draw_tokens(log_probs, count, generator):
    """Draw `count` tokens for every row of log_probs (N, V): (N, count)."""
    uniforms = uniform((len(log_probs), count), log_probs.device, generator)
    tokens, _ = sample_categorical(log_probs, uniforms)
    return tokens


@pytest.mark.parametrize("name", SCHEDULES)
def test_visible_share_falls_from_one_to_zero(name):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    schedule = make_schedule(name)
    alpha = schedule.alpha(t)
    assert alpha[0] == 1
    assert alpha[-1].abs() < 1e-15
    assert (alpha.diff() < 0).all()

    # the rate is the derivative of the total noise
    rise = schedule.total(t + 1e-6) - schedule.total(t - 1e-6)
    slope = rise[1:-1] / 2e-6
    torch.testing.assert_close(schedule.rate(t)[1:-1], slope, rtol=1e-4, atol=1e-4)


def test_only_schedules_that_reach_the_full_mask_are_sampled_from():
    for name in ("loglinear", "cosine", "cosinesqr", "linear"):
        make_schedule(name).check_reaches_full_mask()
    make_schedule("geometric", sigma_min=1e-4, sigma_max=20).check_reaches_full_mask()

    with pytest.raises(ValueError, match="0.368 of the tokens visible"):
        make_schedule("geometric").check_reaches_full_mask()


def test_log_linear_reveal_probability_is_the_relative_step():
    alpha = make_schedule("loglinear").alpha
    end, half, start = torch.tensor([0.0, 0.5, 0.75])
    assert reveal_probability(alpha(half), alpha(start)) == pytest.approx(1 / 3)
    assert reveal_probability(alpha(end), alpha(half)) == 1


def test_visible_tokens_are_carried_over_and_the_mask_is_impossible():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.bfloat16)
    noisy = torch.tensor([[2, 0, 2], [4, 2, 1]])
    log_probs = subs_log_probs(logits, noisy, mask_token_id=2)
    probabilities = log_probs.exp()

    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3))
    assert (probabilities[..., 2] == 0).all()

    assert log_probs[0, 1, 0] == 0
    assert log_probs[1, 0, 4] == 0
    torch.testing.assert_close(log_probs[0, 0], token_log_probs(logits[0, 0], 2))


def test_drawn_tokens_have_their_law_for_every_candidate():
    probabilities = torch.tensor(
        [[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.9]],
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(1)
    draws = draw_tokens(probabilities.log(), 200_000, generator)

    for row in range(2):
        share = torch.bincount(draws[row], minlength=6) / draws.shape[1]
        expected = probabilities[row]
        # 200,000 draws: 4.5 standard errors are below 0.006
        assert (share - expected).abs().max() < 0.006
        assert (share[expected == 0] == 0).all()

    # candidates are independent: token 1 twice in a row
    ones = draws[0] == 1
    both = ones[::2] & ones[1::2]
    assert abs(both.double().mean() - 0.25) < 0.006


def test_rare_tokens_are_drawn_at_their_rate():
    """Half the mass lies in events of probability 2^-26.

    Float32 Gumbel noise never draws an event rarer than about 2^-24.
    """
    size = 2**25
    log_probs = torch.full((1, size), math.log(0.5 / (size - 1)))
    log_probs[0, 0] = math.log(0.5)
    assert math.exp(log_probs[0, 1]) == pytest.approx(2.0**-26, rel=1e-6)

    draws = draw_tokens(log_probs, 4000, torch.Generator().manual_seed(0))
    first = (draws == 0).double().mean()
    assert abs(first - 0.5) < 0.035  # 4.4 standard errors

    # The rest is uniform: Kolmogorov-Smirnov at 1e-5.
    others = np.sort(draws[draws > 0].double().numpy())
    empirical = np.arange(len(others)) / len(others)
    distance = np.abs(others / size - empirical).max()
    assert distance < 2.47 / math.sqrt(len(others))


def test_last_token_is_reachable_but_never_a_zero_behind_it():
    log_probs = torch.tensor([[-math.inf, 0.0, -40.0, -math.inf]])
    draws = draw_tokens(log_probs, 100_000, torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) <= {1, 2}


def test_row_without_any_possible_token_is_an_error():
    for row in ([-math.inf] * 4, [0.0, 0.0, math.nan, 0.0]):
        with pytest.raises(ValueError, match="no token left"):
            draw_tokens(torch.tensor([row]), 1, None)


def test_log_probabilities_of_the_draws_are_normalised():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 3
    uniforms = uniform((5, 4), logits.device, torch.Generator().manual_seed(1))
    tokens, log_probs = sample_categorical(logits, uniforms)
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, tokens))


def test_same_seed_draws_the_same():
    log_probs = torch.zeros(3, 7)
    first = draw_tokens(log_probs, 5, torch.Generator().manual_seed(4))
    second = draw_tokens(log_probs, 5, torch.Generator().manual_seed(4))
    assert torch.equal(first, second)

    unseeded = draw_tokens(log_probs, 5, None)
    assert not torch.equal(first, unseeded)


def test_reverse_posterior_equals_the_recorded_one():
    data = golden("f_step")
    noisy = data["xt"]
    masked = (noisy == 32).unsqueeze(-1)
    visible = torch.nn.functional.one_hot(noisy, 33).double()  # (B, L, V)

    # loglinear: alpha(t) = 1 - t
    t = data["t"].double()[:, None, None]
    s = t - data["dt"].double()
    log_probs = data["p_x0"].double().log()
    posterior = reverse_posterior(log_probs, noisy, 32, alpha_s=1 - s, alpha_t=1 - t)
    ones = torch.ones(noisy.shape, dtype=torch.float64)
    torch.testing.assert_close(posterior.sum(-1), ones)

    # the recorded q is unnormalised, and its second variant has (1 - eps) t for t, which leaves
    # the ratio alone
    for name in ("cache", "ddpm"):
        recorded = data[f"q_xs_{name}"].double()
        recorded = recorded / recorded.sum(-1, keepdim=True)
        recorded = torch.where(masked, recorded, visible)
        assert (posterior - recorded).abs().max() < 1e-6
