"""Which positions the reverse chain reveals, and when. Tokens play no part: given x_t the reveal set S is independent
of x_0, so the steps of a whole trajectory are drawn before the first network call.

Steps that reveal nothing in any row are left out, so that a large T costs no more than the text is long. `free` (B, L)
bool are the masks to fill. Everything here lives on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .masked_diffusion import NoiseSchedule, draw_reveal_times, reveal_probability


@dataclass
class Step:
    """One step: it starts at the times `t` (B,) and reveals `revealed` (B, L) bool.

    Without sampling `revealed` is None, and `counts` (B,) says how many of the most confident positions are revealed.
    `index` counts all steps of the block before this one, the ones that are left out among them.
    """

    index: int
    t: torch.Tensor
    revealed: torch.Tensor | None
    counts: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """Indices of the rows in which something is revealed. The others need no network."""
        return self.counts.nonzero().squeeze(-1)


def most_masks(free: torch.Tensor) -> int:
    """The largest number of masks in a row of `free` (B, L)."""
    return int(free.sum(-1).max()) if len(free) else 0


def ancestral_steps(
    free: torch.Tensor, schedule: NoiseSchedule, num_steps: int, generator: torch.Generator | None = None
) -> Iterator[Step]:
    """The T-step chain on t_n = n / T: a mask is revealed between t and s with (alpha_s - alpha_t) / (1 - alpha_t).

    Position i is revealed in the step n with 1 - alpha(t_{n-1}) <= u_i < 1 - alpha(t_n), u_i uniform: the same law as
    a coin per position and step, and the last step (alpha_0 = 1) reveals everything that is left.
    """
    number = step_of(draw_reveal_times(free, generator), schedule, num_steps)
    for n in reversed(number[free].unique().tolist()):
        revealed = (number == n) & free
        yield Step(num_steps - n, same_time(n / num_steps, free), revealed, revealed.sum(-1))


def step_of(times: torch.Tensor, schedule: NoiseSchedule, num_steps: int) -> torch.Tensor:
    """The least n with u < 1 - alpha(n / T) for every u in `times`, found by bisection."""
    low = torch.zeros_like(times, dtype=torch.long)
    high = torch.full_like(low, num_steps)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        later = 1 - schedule.alpha(middle.double() / num_steps) <= times
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    return high


def first_hitting_steps(
    free: torch.Tensor, schedule: NoiseSchedule, generator: torch.Generator | None = None
) -> Iterator[Step]:
    """The limit T -> infinity, one position per row and call (arXiv 2409.02908), at its own time in every row.

    With n masks left the next reveal time is tau <- tau u^(1/n) for log-linear noise: the order statistics of n
    uniforms, which the sorted `draw_reveal_times` are.
    """
    times, order = draw_reveal_times(free, generator).sort(dim=-1, descending=True)
    for n in range(most_masks(free)):
        hit = times[:, n] >= 0
        revealed = torch.zeros_like(free).scatter(1, order[:, n : n + 1], hit.unsqueeze(1))
        yield Step(n, schedule.time(times[:, n].clamp_min(0)), revealed, hit.long())


def most_confident_steps(free: torch.Tensor, schedule: NoiseSchedule, num_steps: int) -> Iterator[Step]:
    """Without sampling: step n reveals round(|M| (alpha_s - alpha_t) / (1 - alpha_t)) positions, all in the last one.

    The share of the masks that a step reveals grows from step to step (except that the first may take what the
    schedule leaves visible at t = 1), so that the next step which reveals anything is found by bisection.
    """
    left = free.sum(-1)

    def counts(n: int) -> torch.Tensor:
        """(B,) how many positions step n reveals."""
        alpha_s, alpha_t = schedule.alpha(torch.tensor([n - 1, n], dtype=torch.float64, device=free.device) / num_steps)
        share = reveal_probability(alpha_s, alpha_t)
        return (left * share).round(decimals=9).round().long()  # so that 1.4999999999 is the half it stands for

    n = num_steps
    while n >= 1 and bool(left.any()):
        revealed = counts(n)
        if bool(revealed.any()):
            yield Step(num_steps - n, same_time(n / num_steps, free), None, revealed)
            left = left - revealed

        low, high = 1, n  # step `low` reveals something, the steps from `high` on do not
        n = n - 1
        while n > low:
            if bool(counts(n).any()):
                low = n
            else:
                high = n
            n = (low + high) // 2


def most_confident_first_steps(free: torch.Tensor, schedule: NoiseSchedule) -> Iterator[Step]:
    """Without sampling and without a number of steps: one position per call, when the row has its share of masks."""
    total = left = free.sum(-1)
    for n in range(most_masks(free)):
        counts = (left > 0).long()
        yield Step(n, schedule.time(left / total.clamp_min(1).double()), None, counts)
        left = left - counts


def same_time(t: float, free: torch.Tensor) -> torch.Tensor:
    """The time of every row, (B,) float64."""
    return torch.full((len(free),), t, dtype=torch.float64, device=free.device)


__all__ = [
    "Step",
    "ancestral_steps",
    "first_hitting_steps",
    "most_confident_steps",
    "most_confident_first_steps",
    "most_masks",
]
