"""Samplers: which masks a step reveals. A sampler is the distribution q(S | x_t) of the reveal set S inside M(x_t).

A sampler decides where, the proposal (and an energy) decide what. Generation, likelihood bounds, the training pairs of
energies and the step counts of streamers all use the classes of this file and of planners.py.

Shapes: B rows, L positions. Times t run from 1 (all masked) to 0. What depends on masks alone lives on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from .masked_diffusion import NoiseSchedule, reveal_probability

# By what a sampler chooses S, beside noise of its own
MASKS = "masks"  # which positions are masked
PROPOSAL = "proposal"  # p_theta(. | x_t)
TOKENS = "tokens"  # the tokens that were just drawn from it: then no likelihood is known


@dataclass
class State:
    """x_t: B rows of text with masks, as a chain of steps fills them.

    Args:
        ids: (B, L) token ids.
        free: (B, L) bool, the positions that the chain fills.
        present: (B, L) bool, False where a row is shorter.
        mask_token_id: of the model.
        schedule: relates times to shares of masks.
        token_types: (B, L), for networks that take them.
        fillable: (B, L) bool, all that does not belong to the prompt, other blocks included.
        log_probs: (B, L) log p_theta of the tokens as they were drawn, or None where nobody asks.
    """

    ids: torch.LongTensor
    free: torch.Tensor
    present: torch.Tensor
    mask_token_id: int
    schedule: NoiseSchedule
    token_types: torch.LongTensor | None = None
    fillable: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None

    @property
    def masked(self) -> torch.Tensor:
        """(B, L) bool, M(x_t): the free positions that still hold the mask."""
        return self.free & (self.ids == self.mask_token_id)

    def time_of(self, left: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """The times (B,) at which a row of `total` masks is expected to have `left` of them."""
        return self.schedule.time(left.double() / total.clamp_min(1).double())

    def write(self, rows: torch.Tensor, revealed: torch.Tensor, clean: torch.LongTensor) -> None:
        """Put the tokens of `clean` (R, L) at the positions `revealed` (R, L) bool of some rows (R,)."""
        self.ids = self.ids.index_copy(0, rows, torch.where(revealed, clean, self.ids[rows]))

    def keep_log_probs(self, before: torch.Tensor | None, rows: torch.Tensor, taken: torch.Tensor) -> None:
        """Take back, to those `before` (B, L), the log-probabilities of drawn tokens that were not `taken` (R, L)."""
        if before is not None:
            kept = torch.where(taken, self.log_probs[rows], before[rows])
            self.log_probs = before.index_copy(0, rows, kept)

    def mask_again(self, where: torch.Tensor) -> None:
        """Put the mask at the positions `where` (B, L) bool."""
        self.ids = self.ids.masked_fill(where.to(self.ids.device), self.mask_token_id)


@dataclass
class Step:
    """One step of a chain.

    Args:
        t: (B,) float64, the time at which the step starts.
        reveal: (B, L) bool, S; None where the sampler has to see the proposal first.
        counts: (B,) how many positions a row is to reveal, for samplers that decide this beforehand.
        mask_again: (B, L) bool, visible tokens that become masks again after the step.
        rows: (R,) the rows that reveal something, which need a network; those with masks at S (or with any) unless
            given.
        index: how many steps of the block came before, those that were left out because they do nothing among them;
            counted unless given.
        memory: what a sampler keeps from step to step.
        weighs: whether the energy acts on the rows; the chain says so.
    """

    t: torch.Tensor
    reveal: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    mask_again: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    index: int | None = None
    memory: Any = None
    weighs: bool = False

    def known(self, device: torch.device) -> torch.Tensor:
        """S (R, L) bool of its rows, where it follows from the masks alone."""
        return self.reveal[self.rows].to(device)

    def complete(self, number: int, state: State) -> "Step":
        """The same step with its rows and index, `number` unless given."""
        rows = self.rows
        if rows is None:
            rows = rows_with((state.masked if self.reveal is None else self.reveal).cpu())
        return replace(self, rows=rows, index=number if self.index is None else self.index)


@dataclass
class Jump:
    """One step of a random trajectory of one row, as a bound on its likelihood averages over it.

    Args:
        masked: (L,) bool, the masks before the step. revealed: (L,) bool, S.
        chance: (L,) float64, P(i in S | x_t), so that S is averaged out; `revealed` where that is not known.
        t: the time. weight: what the step counts, the inverse of the chance with which it was picked.
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
        return cls(nothing, nothing, nothing.double(), 0.0, 0.0)


class Sampler:
    """The distribution of reveal sets. Subclasses yield `Step`s, and override `reveal` if they look at the proposal.

    Attributes:
        sees: by what S is chosen: MASKS, PROPOSAL or TOKENS.
        has_clock: the steps have fixed times t_n = n / T, and those that do nothing are counted too.
    """

    sees = MASKS
    has_clock = False

    def steps_in(self, free: torch.Tensor) -> int:
        """How many steps fill a block with the masks `free` (B, L) bool, at most: one a mask, unless overridden."""
        return most_masks(free)

    def steps(self, state: State, noise) -> Iterator[Step]:
        """The steps that do something, one after the other. `state` is live: it has what earlier steps revealed."""
        raise NotImplementedError

    def looks_at(self, state: State, rows: torch.Tensor) -> torch.Tensor:
        """Where a sampler that does not see masks alone needs the proposal, (R, L) bool."""
        return state.masked[rows]

    def reveal(self, step: Step, proposal) -> torch.Tensor:
        """S (R, L) bool of the rows of a step that does not say it, on the device of the proposal."""
        raise NotImplementedError

    @property
    def is_deterministic(self) -> bool:
        """Whether S is a function of what is visible, so that a text is reached by one path only."""
        return self.sees == PROPOSAL

    def jump(self, free: torch.Tensor, point: float, noise, schedule: NoiseSchedule) -> Jump:
        """A uniformly drawn step of a random trajectory of one row, by its masks alone.

        Args:
            free: (L,) bool, the masks at the start.
            point: on [0, 1), decides the step.
            noise: the source of all other random numbers.
        """
        # 1. The masks before and after every step: no token plays a part, so that any will do.
        hidden, shown = 0, 1
        ids = torch.where(free, hidden, shown).unsqueeze(0)
        state = State(ids, free.unsqueeze(0), torch.ones_like(free).unsqueeze(0), hidden, schedule)
        path = []
        for step in self.steps(state, noise):
            before = state.masked[0]
            if step.reveal is not None:
                state.write(torch.zeros(1, dtype=torch.long), step.reveal, torch.ones_like(ids))
                path.append((before, step.reveal[0], float(step.t[0])))
            if step.mask_again is not None:
                state.mask_again(step.mask_again)

        # 2. One of its N steps, with the weight N
        masked, revealed, t = path[min(int(point * len(path)), len(path) - 1)]
        return Jump(masked, revealed, revealed.double(), t, float(len(path)))


@dataclass(frozen=True)
class Ancestral(Sampler):
    """The T-step chain on t_n = n / T: every mask is revealed with r_n = (alpha_s - alpha_t) / (1 - alpha_t).

    MDLM (arXiv 2406.07524), equation 7. Position i with a uniform u_i is revealed in the step n with
    1 - alpha(t_{n-1}) <= u_i < 1 - alpha(t_n): the same distribution as a coin per position and step.

    Args:
        num_steps: T.
    """

    num_steps: int = 128
    has_clock = True

    def steps_in(self, free):
        return self.num_steps

    def steps(self, state, noise):
        free = state.free.cpu()
        number = step_of(reveal_times(free, noise), state.schedule, self.num_steps)
        for n in reversed(number[free].unique().tolist()):
            revealed = (number == n) & free
            yield Step(same_time(n / self.num_steps, free), revealed, index=self.num_steps - n)

    def jump(self, free, point, noise, schedule):
        n = min(int(point * self.num_steps) + 1, self.num_steps)
        alpha_s, alpha_t = schedule.alpha(torch.tensor([n - 1, n], dtype=torch.float64, device="cpu") / self.num_steps)

        # Masks at t, of which those that are none at s are revealed. S is averaged out: E 1[i in S] = r_n.
        u = uniforms_of_row(free, noise)
        masked = free & (u < 1 - alpha_t)
        revealed = masked & (u >= 1 - alpha_s)
        chance = masked.double() * reveal_probability(alpha_s, alpha_t)
        return Jump(masked, revealed, chance, n / self.num_steps, float(self.num_steps))


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """One position a row and call, at its own time: the limit T -> infinity of `Ancestral` (arXiv 2409.02908).

    With n masks left the next reveal time is tau <- tau u^(1/n) for log-linear noise: the order statistics of n
    uniforms, which sorted uniforms are.

    Args:
        importance: draw the step of a bound with a density proportional to its weight 1 / n.
    """

    importance: bool = False

    def steps(self, state, noise):
        free = state.free.cpu()
        times, order = reveal_times(free, noise).sort(dim=-1, descending=True)
        for n in range(most_masks(free)):
            hit = times[:, n] >= 0
            revealed = torch.zeros_like(free).scatter(1, order[:, n : n + 1], hit.unsqueeze(1))
            t = state.schedule.time(times[:, n].clamp_min(0))
            yield Step(t, revealed)

    def jump(self, free, point, noise, schedule):
        """The bound is sum_n (1 / n) E[sum_{i in M} -log p_i | n masks], n = 1 .. L.

        M are the n smallest of L uniforms, and the n-th of them is the share of masks at time t: then M given t is
        what the forward process makes of it. Uniform t with the weight 1 / t would have an infinite variance.
        """
        length = int(free.sum())
        weights = torch.ones(length, dtype=torch.float64, device="cpu")
        if self.importance:
            weights = 1 / torch.arange(1, length + 1, dtype=torch.float64, device="cpu")
        cdf = weights.cumsum(0)
        n = min(int(torch.searchsorted(cdf, point * cdf[-1], right=True)) + 1, length)

        u = uniforms_of_row(free, noise)
        share = u[free].sort().values[n - 1]
        masked = free & (u <= share)
        t = float(schedule.time(share))
        return Jump(masked, free & (u == share), masked.double() / n, t, float(cdf[-1] / weights[n - 1]))


def reveal_times(free: torch.Tensor, noise) -> torch.Tensor:
    """A uniform for every mask of `free` (B, L) bool, -1 elsewhere: position i stays masked while 1 - alpha_t > u_i."""
    rows = torch.arange(len(free), device=free.device)
    return torch.where(free, noise.per_position(rows, free), -1.0)


def uniforms_of_row(free: torch.Tensor, noise) -> torch.Tensor:
    """A uniform for every mask of one row `free` (L,) bool: (L,), 2 elsewhere."""
    row = torch.zeros(1, dtype=torch.long, device=free.device)
    return torch.where(free, noise.per_position(row, free.unsqueeze(0))[0], 2.0)


def step_of(times: torch.Tensor, schedule: NoiseSchedule, num_steps: int) -> torch.Tensor:
    """The least n with u < 1 - alpha(n / T) for every u in `times`, found by bisection."""
    low = torch.zeros_like(times, dtype=torch.long)
    high = torch.full_like(low, num_steps)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        later = 1 - schedule.alpha(middle.double() / num_steps) <= times
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    return high


def most_masks(free: torch.Tensor) -> int:
    """The largest number of masks in a row of `free` (B, L)."""
    return int(free.sum(-1).max()) if len(free) else 0


def rows_with(flags: torch.Tensor) -> torch.Tensor:
    """Indices (R,) of the rows of `flags` (B, L) bool in which something is True."""
    return flags.any(-1).nonzero().squeeze(-1)


def same_time(t: float, free: torch.Tensor) -> torch.Tensor:
    """The time of every row, (B,) float64."""
    return torch.full((len(free),), t, dtype=torch.float64, device="cpu")
