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
    uniforms = uniform((len(log_probs), count), log_probs.device, generator)
    return sample_categorical(log_probs, uniforms)[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_visible_share_falls_from_one_to_zero(name):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    schedule = make_schedule(name)
    alpha = schedule.alpha(t)
    assert alpha[0] == 1 and alpha[-1].abs() < 1e-15
    assert (alpha.diff() < 0).all()
    slope = (schedule.total(t + 1e-6) - schedule.total(t - 1e-6))[1:-1] / 2e-6
    torch.testing.assert_close(schedule.rate(t)[1:-1], slope, rtol=1e-4, atol=1e-4)


def test_only_schedules_that_reach_the_full_mask_are_sampled_from():
    for name in ("loglinear", "cosine", "cosinesqr", "linear"):
        make_schedule(name).check_reaches_full_mask()
    with pytest.raises(ValueError, match="0.368 of the tokens visible"):
        make_schedule("geometric").check_reaches_full_mask()
    make_schedule("geometric", sigma_min=1e-4, sigma_max=20).check_reaches_full_mask()


def test_log_linear_reveal_probability_is_the_relative_step():
    alpha = make_schedule("loglinear").alpha
    t, s = torch.tensor(0.75), torch.tensor(0.5)
    assert reveal_probability(alpha(s), alpha(t)) == pytest.approx(1 / 3)
    assert reveal_probability(alpha(torch.tensor(0.0)), alpha(s)) == 1


def test_visible_tokens_are_carried_over_and_the_mask_is_impossible():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    noisy = torch.tensor([[2, 0, 2], [4, 2, 1]])
    log_probs = subs_log_probs(logits, noisy, mask_token_id=2)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3))
    assert (log_probs.exp()[..., 2] == (noisy == 2) * 0).sum() == 6
    assert log_probs[0, 1, 0] == 0 and log_probs[1, 0, 4] == 0
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
        # 200,000 draws: 4.5 standard errors are below 0.006
        assert (share - probabilities[row]).abs().max() < 0.006
        assert (share[probabilities[row] == 0] == 0).all()

    pairs = (draws[0, ::2] == 1).double() * (draws[0, 1::2] == 1).double()
    assert abs(pairs.mean() - 0.25) < 0.006  # candidates are independent


def test_rare_tokens_are_drawn_at_their_rate():
    """Float32 Gumbel noise never draws an event rarer than about 2^-24. Here half the mass lies in such events."""
    rare = 2.0**-26
    size = 2**25
    log_probs = torch.full((1, size), math.log(0.5 / (size - 1)))
    log_probs[0, 0] = math.log(0.5)
    assert math.exp(log_probs[0, 1]) == pytest.approx(rare, rel=1e-6)

    draws = draw_tokens(log_probs, 4000, torch.Generator().manual_seed(0))
    assert abs((draws == 0).double().mean() - 0.5) < 0.035  # 4.4 standard errors
    others = draws[draws > 0].double().numpy()

    # The rest is uniform: Kolmogorov-Smirnov at 1e-5.
    distance = np.abs(np.sort(others) / size - np.arange(len(others)) / len(others)).max()
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
    tokens, log_probs = sample_categorical(
        logits,
        uniform((5, 4), logits.device, torch.Generator().manual_seed(1)),
    )
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, tokens))


def test_same_seed_draws_the_same():
    one, two = (draw_tokens(torch.zeros(3, 7), 5, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, draw_tokens(torch.zeros(3, 7), 5, None))


def test_reverse_posterior_equals_the_recorded_one():
    data = golden("f_step")
    mask, t = 32, data["t"].double()[:, None, None]
    s = t - data["dt"].double()
    visible = torch.nn.functional.one_hot(data["xt"], 33).double()

    for name in ("cache", "ddpm"):
        # the recorded q is unnormalised; its second variant has (1 - eps) t for t, which leaves the ratio alone
        recorded = data[f"q_xs_{name}"].double()
        recorded = recorded / recorded.sum(-1, keepdim=True)
        recorded = torch.where((data["xt"] == mask).unsqueeze(-1), recorded, visible)
        ours = reverse_posterior(data["p_x0"].double().log(), data["xt"], mask, 1 - s, 1 - t)
        assert (ours - recorded).abs().max() < 1e-6
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:2], dtype=torch.float64))
