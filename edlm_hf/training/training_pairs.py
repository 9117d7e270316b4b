"""The pairs (x_0, x_t) that energies are trained on: masks and the times that belong to them.

Shapes: B rows, L positions.
"""

from typing import NamedTuple

import numpy as np
import torch

from edlm_hf.evaluation.noising import RowNoise
from edlm_hf.modeling.masked_diffusion import NoiseSchedule
from edlm_hf.modeling.samplers import Jump, Sampler, State

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
        jumps += random_jumps(sampler, schedule, free[rows], uniforms[rows], sources[rows])

    masked = torch.stack([jump.masked for jump in jumps])
    revealed = torch.stack([jump.revealed for jump in jumps])
    t = step_uniforms.new_tensor([jump.t for jump in jumps])
    return Pairs(t, masked.to(modelled.device), revealed.to(modelled.device))


def random_jumps(
    sampler: Sampler,
    schedule: NoiseSchedule,
    free: torch.Tensor,
    uniforms: list[float],
    sources: list[np.random.Generator],
) -> list[Jump]:
    """`Sampler.jump` of every row of `free` (B, L) bool, with the same numbers.

    A sampler with a `jump` of its own takes a step without the path to it. The paths of all others
    are simulated for all rows together, several times faster than one after the other.
    """
    if type(sampler).jump is Sampler.jump:
        return jumps_of_paths(sampler, schedule, free, uniforms, sources)

    jumps = []
    for row, uniform, source in zip(free, uniforms, sources, strict=True):
        if row.any():
            jumps.append(sampler.jump(row, uniform, RowNoise([source]), schedule))
        else:
            jumps.append(Jump.none(row))
    return jumps


def jumps_of_paths(
    sampler: Sampler,
    schedule: NoiseSchedule,
    free: torch.Tensor,
    uniforms: list[float],
    sources: list[np.random.Generator],
) -> list[Jump]:
    """Simulate the path of every row of `free` (B, L) bool, and take one of its steps."""
    # 1. Rows of which only the masks are known: S does not depend on tokens, any id will do
    mask, token = 0, 1
    ids = torch.where(free, mask, token)  # (B, L)
    tokens = torch.full_like(ids, token)
    all_rows = torch.arange(len(free), device=free.device)
    state = State(ids, free, torch.ones_like(free), mask, schedule)

    # 2. The paths: M (B, L), S (B, L), t (B,), and in which rows the step does something
    path = []
    for step in sampler.steps(state, RowNoise(sources)):
        masked = state.masked
        acts = step.reveal.any(-1)
        state.write(all_rows, step.reveal, tokens)
        if step.mask_again is not None:
            acts = acts | step.mask_again.any(-1)
            state.mask_again(step.mask_again)
        path.append((masked, step.reveal, step.t, acts.tolist()))

    # 3. One of the N steps of each row, with the chance 1 / N
    jumps = []
    for i, uniform in enumerate(uniforms):
        steps = [(masked, revealed, t) for masked, revealed, t, acts in path if acts[i]]
        num_steps = len(steps)
        if num_steps == 0:
            jumps.append(Jump.none(free[i]))
            continue

        masked, revealed, t = steps[min(int(uniform * num_steps), num_steps - 1)]
        chance = revealed[i].double()
        jumps.append(Jump(masked[i], revealed[i], chance, float(t[i]), float(num_steps)))
    return jumps


__all__ = ["Pairs", "forward_pairs", "step_pairs"]
