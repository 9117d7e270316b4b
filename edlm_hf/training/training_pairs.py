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
    chance = (1 - schedule.alpha(t)).unsqueeze(1)
    masked = modelled & (mask_uniforms < chance)
    if share_uniforms is None:
        return Pairs(t, masked, masked)
    return Pairs(t, masked, masked & (mask_uniforms >= share_uniforms.unsqueeze(1) * chance))


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
    free = modelled.cpu()
    uniforms = [min(u, LARGEST_BELOW_ONE) for u in step_uniforms.tolist()]
    sources = [np.random.default_rng(int(seed * 2**53)) for seed in seeds.tolist()]

    jumps = []
    for start in range(0, len(free), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        jumps += sampler.jumps(free[rows], uniforms[rows], RowNoise(sources[rows]), schedule)

    masked = torch.stack([jump.masked for jump in jumps])
    revealed = torch.stack([jump.revealed for jump in jumps])
    t = step_uniforms.new_tensor([jump.t for jump in jumps])
    return Pairs(t, masked.to(modelled.device), revealed.to(modelled.device))


__all__ = ["Pairs", "forward_pairs", "step_pairs"]
