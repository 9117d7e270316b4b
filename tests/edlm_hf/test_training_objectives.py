"""Times, weights and losses of the denoiser against recorded values of the published code."""

import pytest
import torch
from published import golden, write_checkpoint

from edlm_hf import MDLMForMaskedLM
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.training.objectives import (
    bound_weight,
    importance_times,
    low_discrepancy_times,
    masked_token_losses,
)

SCHEDULES = ["loglinear", "cosine", "cosinesqr", "geometric", "linear"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_weight_is_the_rate_at_which_masks_are_revealed(name):
    schedule = make_schedule(name)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(bound_weight(schedule, t), -slope / (1 - alpha), rtol=1e-9, atol=0)


def test_the_weight_of_log_linear_noise_is_one_over_t():
    t = torch.tensor([1e-3, 0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(bound_weight(make_schedule("loglinear"), t), 1 / t, rtol=1e-12, atol=0)


def test_low_discrepancy_times_are_the_published_ones_without_a_shift():
    data = golden("e_nelbo")
    times = low_discrepancy_times(data["anti_u"], len(data["anti_u"]))
    torch.testing.assert_close(times, data["anti_t"], rtol=0, atol=1e-7)


def test_every_row_of_the_global_batch_has_its_own_part_of_the_time_axis():
    u = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = low_discrepancy_times(u, 12, shift=0.3)
    parts = torch.cat([low_discrepancy_times(u[i : i + 4], 12, i, 0.3) for i in (0, 4, 8)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-15)
    position = ((whole.sort().values - 1e-3) / (1 - 1e-3) - 0.3) % 1
    assert sorted((position * 12).long().tolist()) == list(range(12))


def test_a_row_has_every_time_when_the_shift_is_random():
    shifts = (torch.arange(1000) + 0.5) / 1000
    times = torch.stack([low_discrepancy_times(torch.tensor([0.4]), 64, 17, shift) for shift in shifts])
    assert times.mean().item() == pytest.approx(0.5005, abs=1e-3)


@pytest.mark.parametrize("name", ["loglinear", "cosine", "cosinesqr"])
def test_importance_sampled_times_have_the_same_mean_with_a_constant_weight(name):
    schedule = make_schedule(name)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    times, weight = importance_times(schedule, u)
    for power in (1, 2):  # int w(t) (1 - alpha)^power dt = 1 / power
        assert ((1 - schedule.alpha(times)) ** power).mean().item() * weight == pytest.approx(1 / power, abs=2e-3)


def test_importance_sampled_times_are_the_published_ones():
    data = golden("e_nelbo")
    times, _ = importance_times(make_schedule("loglinear"), data["plain_t"].double())
    torch.testing.assert_close(times.float(), data["plain_t_importance"], rtol=3e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("conditioned", [False, True])
def test_terms_of_the_bound_are_the_published_ones(tmp_path, conditioned):
    data, schedule, tag = golden("e_nelbo"), make_schedule("loglinear"), f"tc{int(conditioned)}"
    model = MDLMForMaskedLM.from_pretrained(
        write_checkpoint(
            tmp_path,
            "model_dit",
            time_conditioning=conditioned,
        )
    )
    masked = data["xt"] == 32

    def losses(timesteps):
        logits = model(data["xt"], timesteps=timesteps if conditioned else None).logits
        return masked_token_losses(logits, data["x0"], masked, 32)

    terms = losses(schedule.total(data["t"])) * bound_weight(schedule, data["t"]).unsqueeze(1)
    torch.testing.assert_close(terms, data[f"nelbo_cont_{tag}"], rtol=1e-3, atol=1e-3)
    _, weight = importance_times(schedule, data["t"])
    if conditioned:  # the published change of variables: the same weight, and the network sees t
        torch.testing.assert_close(
            losses(data["t"]) * weight,
            data["nelbo_cov_tc1"],
            rtol=1e-3,
            atol=1e-3,
        )
    else:
        torch.testing.assert_close(
            losses(None) * weight,
            data["nelbo_importance_tc0"],
            rtol=1e-3,
            atol=1e-3,
        )


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    masked = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    losses = masked_token_losses(logits, torch.full((2, 5), 3), masked, 8)
    expected = -logits.float()[..., :8].log_softmax(-1)[..., 3]
    torch.testing.assert_close(losses, expected * masked)
