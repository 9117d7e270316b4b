"""The pairs that energies are trained on: rows together as rows alone."""

import numpy as np
import pytest
import torch

from edlm_hf.evaluation.noising import RowNoise
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.modeling.sampler_choice import make_sampler
from edlm_hf.training.energy_arguments import RANDOM_ORDER
from edlm_hf.training.training_pairs import step_pairs

SCHEDULE = make_schedule("loglinear")


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "dilated", "spaced", "remdm"])
def test_steps_of_rows_together_are_the_steps_of_every_row_alone(name):
    B, L, T = 40, 24, 6
    generator = torch.Generator().manual_seed(0)
    points, seeds = torch.rand(2, B, generator=generator, dtype=torch.float64)
    points[0] = 1.0
    modelled = torch.rand(B, L, generator=generator) < torch.rand(B, 1, generator=generator)
    modelled[3] = False  # a row of context
    modelled[7] = True
    modelled[9, 2:] = False  # fewer masks than steps

    sampler = make_sampler(name, T, parameters=RANDOM_ORDER.get(name))
    t, masked, revealed = step_pairs(sampler, SCHEDULE, points, modelled, seeds)
    for i, free in enumerate(modelled):
        noise = RowNoise([np.random.default_rng(int(seeds[i] * 2**53))])
        (alone,) = sampler.jumps(free[None], [min(float(points[i]), 1 - 1e-9)], noise, SCHEDULE)
        assert float(t[i]) == alone.t
        assert torch.equal(masked[i], alone.masked) and torch.equal(revealed[i], alone.revealed)

    assert not masked[3].any() and float(t[3]) == 0 and revealed.any(-1).sum() > 10


def test_rows_without_a_token_that_counts_have_no_masks():
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    uniforms = torch.full((2,), 0.5, dtype=torch.float64)
    for name in ("ancestral", "dilated"):
        pairs = step_pairs(make_sampler(name, 4), SCHEDULE, uniforms, nothing, uniforms)
        assert not pairs.masked.any() and not pairs.from_text.any()
