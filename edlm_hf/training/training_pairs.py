"""The pairs (x_0, x_t) that energies are trained on: masks and the times that belong to them.

Shapes: B rows, L positions.
"""

from typing import NamedTuple

import numpy as np
import torch

from edlm_hf.evaluation.noising import RowNoise
from edlm_hf.modeling.masked_diffusion import NoiseSchedule
from edlm_hf.modeling.samplers import Sampler

LARGEST_BELOW_ONE = 1 - 1e-9
ROWS_AT_ONCE = 32  # whose paths are in memory
NUM_SEEDS = 2**53  # a uniform on [0, 1) in float64 is a multiple of 2^-53


class Pairs(NamedTuple):
    """B texts with masks.

    Args:
        t: (B,) times.
        masked: (B, L) bool, M(x_t).
        from_text: (B, L) bool, the masks that hold x_0 in the candidate of the data.
    """

    t: torch.Tensor
    masked: torch.Tensor
    from_text: torch.Tensor


def forward_pairs(
    schedule: NoiseSchedule,
    t: torch.Tensor,
    modelled: torch.Tensor,
    mask_uniforms: torch.Tensor,
    share_uniforms: torch.Tensor | None = None,
) -> Pairs:
    """Mask every token with probability 1 - alpha_t: the forward process q(x_t | x_0).

    Args:
        schedule: of the denoiser.
        t: (B,) times.
        modelled: (B, L) bool, the tokens that count.
        mask_uniforms: (B, L), decide which tokens are masked.
        share_uniforms: (B,), the shares of the masks that are not revealed. Unless given, the text
            fills all masks.
    """
    # M(x_t): u < 1 - alpha_t
    chance = (1 - schedule.alpha(t)).unsqueeze(1)  # (B, 1)
    masked = modelled & (mask_uniforms < chance)
    if share_uniforms is None:
        return Pairs(t, masked, masked)

    # The masks of x_s have u < share (1 - alpha_t), so that M(x_s) lies in M(x_t)
    later_chance = share_uniforms.unsqueeze(1) * chance
    revealed = masked & (mask_uniforms >= later_chance)
    return Pairs(t, masked, revealed)


def step_pairs(
    sampler: Sampler,
    schedule: NoiseSchedule,
    step_uniforms: torch.Tensor,
    modelled: torch.Tensor,
    seeds: torch.Tensor,
) -> Pairs:
    """Take one random step of a sampler in every row: the text gives the tokens that it reveals.

    Args:
        sampler: one that sees masks alone.
        schedule: of the denoiser.
        step_uniforms: (B,) on [0, 1], which decide the step.
        modelled: (B, L) bool, the tokens that count.
        seeds: (B,) uniforms on [0, 1), each the seed of the other random numbers of its row.
    """
    # Numbers of the rows, on the CPU, where samplers draw
    free = modelled.cpu()
    uniforms = [min(u, LARGEST_BELOW_ONE) for u in step_uniforms.tolist()]
    sources = [np.random.default_rng(int(seed * NUM_SEEDS)) for seed in seeds.tolist()]

    # One jump per row, a few rows at a time
    jumps = []
    for start in range(0, len(free), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        noise = RowNoise(sources[rows])
        jumps += sampler.jumps(free[rows], uniforms[rows], noise, schedule)

    # M(x_t) and S, (B, L), and the times of the steps
    masked = torch.stack([jump.masked for jump in jumps])
    revealed = torch.stack([jump.revealed for jump in jumps])
    t = step_uniforms.new_tensor([jump.t for jump in jumps])
    device = modelled.device
    return Pairs(t, masked.to(device), revealed.to(device))


__all__ = ["Pairs", "forward_pairs", "step_pairs"]
