"""Which positions the reverse chain reveals, and when. Tokens play no part: given x_t the reveal set S is independent
of x_0, so the steps of a whole trajectory are drawn before the first network call.

`free` (B, L) bool are the masks to fill; everything here lives on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .masked_diffusion import NoiseSchedule, draw_reveal_times, reveal_probability


@dataclass
class Step:
    """One step: it starts at the times `t` (B,) and reveals `revealed` (B, L) bool.

    Without sampling `revealed` is None, and `counts` (B,) says how many of the most confident positions are revealed.
    """

    t: torch.Tensor
    revealed: torch.Tensor | None
    counts: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """Indices of the rows in which something is revealed; the others need no network."""
        return self.counts.nonzero().squeeze(-1)


def ancestral_steps(
    free: torch.Tensor, schedule: NoiseSchedule, num_steps: int, generator: torch.Generator | None = None
) -> Iterator[Step]:
    """The T-step chain on t_n = n / T: a mask is revealed between t and s with (alpha_s - alpha_t) / (1 - alpha_t).

    Position i is revealed in the step n with 1 - alpha(t_{n-1}) <= u_i < 1 - alpha(t_n), u_i uniform: the same law as
    a coin per position and step, and the last step (alpha_0 = 1) reveals everything that is left.
    """
    times = draw_reveal_times(free, generator)
    grid = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    number = torch.searchsorted(1 - schedule.alpha(grid[1:]), times, right=True) + 1
    for n in range(num_steps, 0, -1):
        revealed = (number == n) & free
        yield Step(grid[n].expand(len(free)), revealed, revealed.sum(-1))


def first_hitting_steps(
    free: torch.Tensor, schedule: NoiseSchedule, generator: torch.Generator | None = None
) -> Iterator[Step]:
    """The limit T -> infinity, one position per row and call (arXiv 2409.02908), at its own time in every row.

    With n masks left the next reveal time is tau <- tau u^(1/n) for log-linear noise: the order statistics of n
    uniforms, which the sorted `draw_reveal_times` are.
    """
    times, order = draw_reveal_times(free, generator).sort(dim=-1, descending=True)
    for n in range(int(free.sum(-1).max())):
        hit = times[:, n] >= 0
        revealed = torch.zeros_like(free).scatter(1, order[:, n : n + 1], hit.unsqueeze(1))
        yield Step(schedule.time(times[:, n].clamp_min(0)), revealed, hit.long())


def most_confident_steps(free: torch.Tensor, schedule: NoiseSchedule, num_steps: int | None) -> Iterator[Step]:
    """Without sampling: step n reveals round(|M| (alpha_s - alpha_t) / (1 - alpha_t)) positions, all in the last one.

    Without a number of steps, one position per call, at the time that has the row's share of masks.
    """
    total = left = free.sum(-1)
    if num_steps is None:
        for _ in range(int(total.max())):
            counts = (left > 0).long()
            yield Step(schedule.time(left / total.clamp_min(1).double()), None, counts)
            left = left - counts
        return
    grid = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    r = reveal_probability(schedule.alpha(grid[:-1]), schedule.alpha(grid[1:]))
    for n in range(num_steps, 0, -1):
        counts = (left * r[n - 1]).round(decimals=9).round().long()  # so that 1.4999999999 is the half it stands for
        yield Step(grid[n].expand(len(free)), None, counts)
        left = left - counts


__all__ = ["Step", "ancestral_steps", "first_hitting_steps", "most_confident_steps"]
