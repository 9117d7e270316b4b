"""Samplers: which masks a step reveals.

A sampler is the distribution q(S | x_t) of the reveal set S inside M(x_t). It decides where, the
proposal (and an energy) decide what. Generation, likelihood bounds, the training pairs of energies
and the step counts of streamers all use the classes of this file and of planners.py.

Shapes: B rows of a batch, R rows of a step, L positions. Times t run from 1 (all masked) to 0.
Everything that depends on masks alone lives on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .chain_state import State
from .masked_diffusion import NoiseSchedule, reveal_probability
from .positions import Positions

# By what a sampler chooses S, besides noise of its own
MASKS = "masks"  # which positions are masked
PROPOSAL = "proposal"  # p_theta(. | x_t)
TOKENS = "tokens"  # the tokens that were just drawn from it: then no likelihood is known


@dataclass
class Step:
    """One step of a chain.

    Args:
        t: (B,) float64, the time at which the step starts.
        reveal: (B, L) bool, S. None where the sampler has to see the proposal first.
        counts: (B,) how many positions a row is to reveal, where a sampler decides this beforehand.
        mask_again: (B, L) bool, visible tokens that become masks again after the step.
        rows: (R,) the rows that reveal something, which need a network. Unless given, the rows
            with masks at S, or with any mask where S is not known.
        index: how many steps of the block came before. Steps that were left out because they do
            nothing count too. Counted by the chain unless given.
        memory: values that a sampler keeps from step to step.
        energy_acts: whether the energy acts on the rows. The chain sets it.
    """

    t: torch.Tensor
    reveal: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    mask_again: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    index: int | None = None
    memory: Any = None
    energy_acts: bool = False

    def revealed(self, device: torch.device) -> Positions | None:
        """S of the R rows of the step, where it follows from the masks alone."""
        if self.reveal is None:
            return None
        return Positions.known(self.reveal[self.rows], device)

    def complete(self, number: int, state: State) -> "Step":
        """The same step with its rows, and its index, which is `number` unless given."""
        index = number if self.index is None else self.index
        if self.rows is not None:
            return replace(self, index=index)

        active = state.masked if self.reveal is None else self.reveal
        return replace(self, rows=rows_with(active.cpu()), index=index)


@dataclass
class Jump:
    """One step of a random trajectory of one row. Bounds on likelihoods average over such steps.

    Args:
        masked: (L,) bool, the masks before the step.
        revealed: (L,) bool, S.
        chance: (L,) float64, P(i in S | x_t), so that S is averaged out. Equal to `revealed` where
            that is not known.
        t: the time at which the step starts.
        weight: 1 / q, where q is the chance with which the step was picked.
    """

    masked: torch.Tensor
    revealed: torch.Tensor
    chance: torch.Tensor
    t: float
    weight: float

    @classmethod
    def none(cls, free: torch.Tensor) -> "Jump":
        """The step of a row without masks, which reveals nothing."""
        nothing = torch.zeros_like(free)
        return cls(
            masked=nothing,
            revealed=nothing,
            chance=nothing.double(),
            t=0.0,
            weight=0.0,
        )


class Sampler:
    """The distribution of reveal sets.

    Subclasses yield `Step`s, and override `reveal` if they look at the proposal.

    Attributes:
        sees: by what S is chosen: MASKS, PROPOSAL or TOKENS.
        has_clock: the steps have fixed times t_n = n / T, and steps that do nothing count too.
        revises: tokens that are visible may change, or become masks again.
    """

    sees = MASKS
    has_clock = False
    revises = False

    def steps_in(self, free: torch.Tensor) -> int:
        """The most steps that fill the masks `free` (B, L) bool: one a mask unless overridden."""
        return most_masks(free)

    def steps(self, state: State, noise) -> Iterator[Step]:
        """The steps that do something, in their order.

        `state` is live: it has the tokens that earlier steps revealed.
        """
        raise NotImplementedError

    def looks_at(self, state: State, rows: torch.Tensor) -> torch.Tensor:
        """Where a sampler that sees more than masks needs the proposal, (R, L) bool."""
        return state.masked[rows]

    def reveal(self, step: Step, proposal) -> torch.Tensor:
        """S (R, L) bool on the device of the proposal, for a step without a `reveal` of its own."""
        raise NotImplementedError

    @property
    def is_deterministic(self) -> bool:
        """Whether S is a function of the visible tokens, so that a text has one path only."""
        return self.sees == PROPOSAL

    def jumps(
        self,
        free: torch.Tensor,
        uniforms: list[float],
        noise,
        schedule: NoiseSchedule,
    ) -> list[Jump]:
        """Draw one step uniformly from a random path of every row, by its masks alone.

        Steps that do nothing in a row are no steps of its path. A row without masks gets
        `Jump.none`.

        Args:
            free: (B, L) bool, the masks at the start.
            uniforms: B numbers on [0, 1), each decides the step of its row.
            noise: the source of all other random numbers, row by row.
            schedule: relates times to shares of masks.
        """
        # 1. Rows of which the masks are known. S does not depend on tokens: any will do.
        mask = 0
        token = 1
        ids = torch.where(free, mask, token)  # (B, L)
        tokens = torch.full_like(ids, token)
        all_rows = torch.arange(len(free), device=free.device)
        state = State(ids, free, torch.ones_like(free), mask, schedule)

        # 2. The paths: the masks before every step (B, L), S (B, L), t (B,), and in which rows
        # the step does something
        path = []
        for step in self.steps(state, noise):
            masked = state.masked
            acts = step.reveal.any(-1)
            state.write(all_rows, step.reveal, tokens)
            if step.mask_again is not None:
                acts = acts | step.mask_again.any(-1)
                state.mask_again(step.mask_again)
            path.append((masked, step.reveal, step.t, acts.tolist()))

        # 3. One of the N steps of each row, each with the chance 1 / N
        jumps = []
        for i, uniform in enumerate(uniforms):
            steps = [(masked, revealed, t) for masked, revealed, t, acts in path if acts[i]]
            num_steps = len(steps)
            if num_steps == 0:
                jumps.append(Jump.none(free[i]))
                continue

            number = min(int(uniform * num_steps), num_steps - 1)
            masked, revealed, t = steps[number]
            jump = Jump(
                masked=masked[i],
                revealed=revealed[i],
                chance=revealed[i].double(),
                t=float(t[i]),
                weight=float(num_steps),
            )
            jumps.append(jump)
        return jumps


class ClosedFormSampler(Sampler):
    """A sampler that reveals every position at a time of its own.

    A random step follows from these times, without the path to it.
    """

    def jumps(self, free, uniforms, noise, schedule):
        times = reveal_times(free, noise)  # (B, L)
        jumps = []
        for row, of_row, uniform in zip(free, times, uniforms, strict=True):
            if row.any():
                jumps.append(self.jump(row, of_row, uniform, schedule))
            else:
                jumps.append(Jump.none(row))
        return jumps

    def jump(self, free: torch.Tensor, u: torch.Tensor, uniform: float, schedule: NoiseSchedule) -> Jump:
        """The step of a row `free` (L,) bool that a number `uniform` on [0, 1) decides, by its times `u` (L,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ancestral(ClosedFormSampler):
    """The T-step chain on t_n = n / T, in which every mask is revealed with the chance r_n.

        r_n = (alpha_s - alpha_t) / (1 - alpha_t),  t = t_n,  s = t_{n-1}

    This is equation 7 of MDLM (arXiv 2406.07524). Position i with a uniform u_i is revealed in the
    step n with

        1 - alpha(t_{n-1}) <= u_i < 1 - alpha(t_n),

    which has the same distribution as a coin per position and step.

    Args:
        num_steps: T.
    """

    num_steps: int = 128
    has_clock = True

    def steps_in(self, free):
        return self.num_steps

    def steps(self, state, noise):
        # (B, L) u_i, and the step n that reveals position i
        free = state.free.cpu()
        times = reveal_times(free, noise)
        numbers = reveal_steps(times, state.schedule, self.num_steps)

        # Steps that reveal nothing are left out
        for n in reversed(numbers[free].unique().tolist()):
            t = same_time(n / self.num_steps, free)
            revealed = free & (numbers == n)
            yield Step(t, reveal=revealed, index=self.num_steps - n)

    def jump(self, free, u, uniform, schedule):
        # One of the T steps, each with the chance 1 / T
        n = min(int(uniform * self.num_steps) + 1, self.num_steps)
        numbers = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu")
        s_and_t = numbers / self.num_steps
        alpha_s, alpha_t = schedule.alpha(s_and_t)

        # M at t, of which S is visible at s
        masked = free & (u < 1 - alpha_t)
        revealed = masked & (u >= 1 - alpha_s)

        # S is averaged out: P(i in S | x_t) = r_n
        chance = masked.double() * reveal_probability(alpha_s, alpha_t)
        return Jump(
            masked=masked,
            revealed=revealed,
            chance=chance,
            t=n / self.num_steps,
            weight=float(self.num_steps),
        )


@dataclass(frozen=True)
class FirstHitting(ClosedFormSampler):
    """Reveals one position per row and call, at its own time: `Ancestral` for T -> infinity.

    First-hitting sampling (arXiv 2409.02908). With n masks left the next reveal time is
    tau <- tau u^(1/n) for log-linear noise. These are the order statistics of n uniforms, so that
    sorted uniforms have the same distribution.

    Args:
        importance: draw the step of a bound with a density proportional to its weight 1 / n.
    """

    importance: bool = False

    def steps(self, state, noise):
        # (B, L) the times of a row from the latest on, and the positions that they belong to.
        # Positions that are not free have the time -1, and come last.
        free = state.free.cpu()
        times, positions = reveal_times(free, noise).sort(dim=-1, descending=True)

        for n in range(most_masks(free)):
            # (B, 1) the n-th mask of every row, where there is one
            share = times[:, n : n + 1]
            position = positions[:, n : n + 1]
            has_mask = share >= 0

            revealed = torch.zeros_like(free).scatter(1, position, has_mask)
            t = state.schedule.time(share.clamp_min(0).squeeze(1))
            yield Step(t, reveal=revealed)

    def jump(self, free, u, uniform, schedule):
        """A step of the bound sum_n (1 / n) E[sum_{i in M} -log p_i | n masks], n = 1 .. L.

        M are the n smallest of L uniforms, and the n-th of them is the share of masks at time t:
        then M given t has the distribution of the forward process. Uniform t with the weight 1 / t
        would have an infinite variance.
        """
        # 1. n by inverse CDF, with a chance proportional to 1, or to 1 / n
        num_masks = int(free.sum())
        weights = torch.ones(num_masks, dtype=torch.float64, device="cpu")
        if self.importance:
            weights = 1 / torch.arange(1, num_masks + 1, dtype=torch.float64, device="cpu")
        cdf = weights.cumsum(0)
        threshold = uniform * cdf[-1]
        index = int(torch.searchsorted(cdf, threshold, right=True))
        n = min(index + 1, num_masks)

        # 2. M: the n smallest uniforms. The largest of these is revealed.
        share = u[free].sort().values[n - 1]
        masked = free & (u <= share)
        revealed = free & (u == share)

        # 3. S is averaged out: P(i in S | x_t) = 1 / n
        return Jump(
            masked=masked,
            revealed=revealed,
            chance=masked.double() / n,
            t=float(schedule.time(share)),
            weight=float(cdf[-1] / weights[n - 1]),
        )


def reveal_times(free: torch.Tensor, noise) -> torch.Tensor:
    """A uniform u_i for every mask of `free` (B, L) bool: (B, L), -1 elsewhere.

    Position i stays masked while 1 - alpha_t > u_i.
    """
    rows = torch.arange(len(free), device=free.device)
    uniforms = noise.per_position(rows, free)
    return torch.where(free, uniforms, -1.0)


def reveal_steps(times: torch.Tensor, schedule: NoiseSchedule, num_steps: int) -> torch.LongTensor:
    """The least n with u < 1 - alpha(n / T) for every u in `times` (B, L), found by bisection."""
    # Invariant: 1 - alpha(low / T) <= u < 1 - alpha(high / T)
    low = torch.zeros_like(times, dtype=torch.long)
    high = torch.full_like(low, num_steps)

    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        t = middle.double() / num_steps
        is_later = 1 - schedule.alpha(t) <= times
        low = torch.where(is_later, middle, low)
        high = torch.where(is_later, high, middle)
    return high


def most_masks(free: torch.Tensor) -> int:
    """The largest number of masks in a row of `free` (B, L)."""
    if not len(free):
        return 0
    return int(free.sum(-1).max())


def rows_with(flags: torch.Tensor) -> torch.LongTensor:
    """Indices (R,) of the rows of `flags` (B, L) bool in which something is True."""
    return flags.any(-1).nonzero().squeeze(-1)


def same_time(t: float, free: torch.Tensor) -> torch.Tensor:
    """The time `t` for every row of `free`: (B,) float64."""
    return torch.full((len(free),), t, dtype=torch.float64, device="cpu")
