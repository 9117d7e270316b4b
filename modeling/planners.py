"""Planners: samplers that look at the proposal to choose which masks a step reveals.

Each class is one rule, with its formula and source. p_i is the proposal at mask i, c_i = max_v p_i(v) its confidence,
and H_i its entropy. K is an even share of the masks that are left: ceil(left / steps left), at least one. Where S
follows from what is visible, a text is reached by one path only, and its likelihood is exact (docs/samplers.md).

Shapes: B rows of a batch, R rows of a step, L positions, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .confidence import SCORES, Score, first_of, rounding_of, take_best
from .devices import send
from .masked_diffusion import reveal_probability
from .samplers import PROPOSAL, TOKENS, Sampler, Step, most_masks, same_time


class Planner(Sampler):
    """A sampler that sees the proposal at all masks. It takes at most T steps, each with one position at least."""

    sees = PROPOSAL
    num_steps: int | None = None
    reveal_counts: str = "even"

    def steps_in(self, free):
        most = most_masks(free)
        if self.num_steps is None:
            return most

        # Dream has steps that reveal nothing
        if self.reveal_counts == "dream":
            return self.num_steps if most else 0
        return min(self.num_steps, most)

    def steps(self, state, noise):
        total = state.free.sum(-1).cpu()
        left = total
        index = 0
        memory = {}

        while bool(left.any()):
            # K (B,), and the rows that reveal something
            counts = self.share(left, index)
            acts = (counts > 0) & (left > 0)
            rows = acts.nonzero().squeeze(-1)
            if len(rows):
                time = state.time_of(left, total)
                yield Step(time, counts=counts, rows=rows, index=index, memory=memory)
                left = state.masked.sum(-1).cpu()
            index = index + 1

    def share(self, left: torch.Tensor, index: int) -> torch.Tensor:
        """K (B,) for rows with `left` (B,) masks in step `index`, 1 for planners without T."""
        if self.num_steps is None:
            return torch.ones_like(left)
        if self.reveal_counts == "dream":
            return dream_share(left, index, self.num_steps)

        # ceil(left / steps left)
        steps_left = max(self.num_steps - index, 1)
        return (left + steps_left - 1) // steps_left


def counts_of(step: Step, proposal) -> torch.Tensor:
    """K (R,) of the rows of a step."""
    return send(step.counts[step.rows], proposal.ids.device)


@dataclass(frozen=True)
class TopK(Planner):
    """S = the K best masks by score, without regard to each other.

    With temperature 0: LLaDA's `low_confidence` (arXiv 2502.09992); Dream's `maskgit_plus`, `topk_margin` and `entropy`
    (arXiv 2508.15487); the margin order of Kim et al. (arXiv 2502.06768). When tokens are drawn, neighbours of what is
    known are revealed together, and they depend on each other most: `Spaced` is far better then.

    Args:
        num_steps: T.
        score: confidence, entropy or margin.
        reveal_counts: `even` for the even share, which is LLaDA's count too, or `dream` (see `dream_share`).
    """

    num_steps: int = 128
    score: str = "confidence"
    reveal_counts: str = "even"

    def __post_init__(self):
        check_score(self.score, SCORES)
        check_reveal_counts(self.reveal_counts)

    def reveal(self, step, proposal):
        return take_best(proposal.score(self.score), counts_of(step, proposal))


@dataclass(frozen=True)
class EntropyBound(Planner):
    """S = the longest prefix of the masks in the order of a score with sum H_i - max H_i <= gamma, at least one mask.

    The bound is on the total correlation that independent draws ignore (EB sampler, arXiv 2505.24857). It holds in
    every row by itself. The number of steps is not fixed.

    Args:
        gamma: in nats.
        score: the order.
    """

    gamma: float = 0.1
    score: str = "entropy"

    def __post_init__(self):
        check_score(self.score, SCORES)
        check_range("gamma", self.gamma, 0, None)

    def reveal(self, step, proposal):
        entropy = proposal.entropy()

        def fits(taken: torch.Tensor) -> torch.Tensor:
            return excess_entropy(entropy, taken) <= self.gamma

        return longest_prefix(proposal.score(self.score), fits)


@dataclass(frozen=True)
class Factor(Planner):
    """S = the n surest masks, n the largest with (n + 1)(1 - c_(n)) < f, at least one (Fast-dLLM, arXiv 2505.22618).

    Args:
        factor: f.
    """

    factor: float = 1.0

    def __post_init__(self):
        check_range("factor", self.factor, 0, None)

    def reveal(self, step, proposal):
        score = proposal.score("confidence")
        free = score.values > -torch.inf

        # 1 - c_(n) for n = 1 .. L, from log-odds: exact where c is close to 1
        doubts = (-score.values).sort(dim=-1).values.sigmoid()
        n = torch.arange(1, doubts.shape[1] + 1, device=doubts.device)

        # The largest n that fits, (R,), even where a smaller one does not
        fits = (n + 1) * doubts < self.factor
        fits = fits & (n <= free.sum(-1, keepdim=True))
        largest = (fits * n).amax(-1)
        return take_best(score, largest.clamp_min(1))


@dataclass(frozen=True)
class Threshold(Planner):
    """S = all masks with c_i >= theta, and always the surest (Fast-dLLM, arXiv 2505.22618: theta = 0.9).

    With `fill_up` the K surest where fewer than K are that sure (LLaDA2: theta = 0.95).

    Args:
        threshold: theta.
        fill_up: reveal K at least, so that T steps are enough.
        num_steps: T.
    """

    threshold: float = 0.9
    fill_up: bool = False
    num_steps: int = 128

    def __post_init__(self):
        check_range("threshold", self.threshold, 0, 1)

    def steps_in(self, free):
        return super().steps_in(free) if self.fill_up else most_masks(free)

    def share(self, left, index):
        return super().share(left, index) if self.fill_up else torch.ones_like(left)

    def reveal(self, step, proposal):
        score = proposal.score("confidence")
        confidence = score.values.sigmoid()

        sure = proposal.free & (confidence >= self.threshold)
        return sure | take_best(score, counts_of(step, proposal))


@dataclass(frozen=True)
class Klass(Planner):
    """S = the masks with c_i > theta and KL(p_i^n || p_i^(n-1)) < eps in h steps in a row; the K surest if none is.

    KLASS (arXiv 2511.05664). It remembers the proposal of the last step, (R, L, V) numbers. The last of T steps reveals
    all masks that are left.

    Args:
        threshold: theta.
        kl_threshold: eps, in nats.
        history_length: h.
        num_steps: T of the share K.
    """

    threshold: float = 0.9
    kl_threshold: float = 0.01
    history_length: int = 2
    num_steps: int = 128

    def __post_init__(self):
        check_range("threshold", self.threshold, 0, 1)
        check_range("kl_threshold", self.kl_threshold, 0, None)
        check_range("history_length", self.history_length, 0, None)

    def reveal(self, step, proposal):
        score = proposal.score("confidence")
        surest = take_best(score, counts_of(step, proposal))
        stable = self.steady_steps(step, proposal) >= self.history_length
        if step.index + 1 >= self.num_steps:
            return surest

        confidence = score.values.sigmoid()
        sure = stable & (confidence > self.threshold)
        has_sure = sure.any(-1, keepdim=True)  # (R, 1)
        return torch.where(has_sure, sure, surest)

    def steady_steps(self, step: Step, proposal) -> torch.LongTensor:
        """Count for how many steps in a row the proposal of a mask has hardly changed: (R, L)."""
        # Rows in the batch and columns of the N positions of the proposal, (N,) each
        rows = send(step.rows, proposal.ids.device)
        row = rows[proposal.positions.row_of]
        column = proposal.positions.index % proposal.ids.shape[1]

        # The last proposal (B, L, V) and the counts (B, L)
        memory = step.memory
        if not memory:
            shape = len(step.t), proposal.ids.shape[1]
            device = rows.device
            size = *shape, proposal.vocab_size
            memory["last"] = torch.full(size, torch.nan, dtype=torch.float32, device=device)
            memory["steady"] = torch.zeros(shape, dtype=torch.long, device=device)

        everywhere = proposal.numbers(None)
        for part, logits in proposal.logits(everywhere):
            place = row[part], column[part]
            log_probs = logits.log_softmax(-1).float()

            # KL(p^n || p^(n-1)). It is NaN without a step before, and NaN is not less than anything.
            log_ratios = log_probs - memory["last"][place]
            terms = log_probs.exp() * log_ratios
            kl = torch.where(log_probs > -torch.inf, terms, 0).sum(-1)

            steady = memory["steady"][place] + 1
            memory["steady"][place] = torch.where(kl < self.kl_threshold, steady, 0)
            memory["last"][place] = log_probs
        return memory["steady"][rows]


@dataclass(frozen=True)
class LowConfidence(Planner):
    """S = the K masks whose drawn token has the largest probability.

    LLaDA's `low_confidence` and Dream's `maskgit_plus` with a temperature. S looks at the drawn tokens, so that those
    it keeps are likelier than under the proposal. The distribution is another one, and no likelihood is known.

    Args:
        num_steps: T.
        reveal_counts: as in `TopK`.
    """

    num_steps: int = 128
    reveal_counts: str = "even"
    sees = TOKENS

    def __post_init__(self):
        check_reveal_counts(self.reveal_counts)

    def reveal(self, step, proposal):
        log_probs = -proposal.nats(proposal.drawn)
        values = torch.where(proposal.free, log_probs, -torch.inf)

        score = Score(values, rounding_errors(values))
        return take_best(score, counts_of(step, proposal))


@dataclass(frozen=True)
class MostConfident(Planner):
    """Reveal the surest masks in place of random ones, for generation without sampling.

    In place of `Ancestral`, step n reveals the round(|M| r_n) surest masks, and the last step all of them. Without a
    number of steps, in place of `FirstHitting`, every step reveals one mask.
    """

    num_steps: int | None = 128
    has_clock = True

    def steps_in(self, free):
        return super().steps_in(free) if self.num_steps is None else self.num_steps

    def steps(self, state, noise):
        if self.num_steps is None:
            yield from super().steps(state, noise)
            return

        # From t = 1 down to 0, over the steps that reveal nothing
        left = state.free.sum(-1).cpu()
        n = self.num_steps
        while n >= 1 and bool(left.any()):
            counts = self.counts_at(n, left, state.schedule)
            if bool(counts.any()):
                rows = counts.nonzero().squeeze(-1)
                time = same_time(n / self.num_steps, left)
                yield Step(time, counts=counts, rows=rows, index=self.num_steps - n)
                left = state.masked.sum(-1).cpu()  # less than that in a row whose text has ended
            n = self.next_step(n, left, state.schedule)

    def counts_at(self, n: int, left: torch.Tensor, schedule) -> torch.LongTensor:
        """round(|M| r_n) (B,), the masks that step n reveals of `left` (B,)."""
        # r_n, from alpha at s = (n - 1) / T and at t = n / T
        numbers = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu")
        times = numbers / self.num_steps
        share = reveal_probability(*schedule.alpha(times))

        # 1.4999999999 stands for 1.5
        return (left * share).round(decimals=9).round().long()

    def next_step(self, n: int, left: torch.Tensor, schedule) -> int:
        """Find the next step below n that reveals anything, by bisection.

        The share r_n grows from step to step, except that the first step may take the masks that the schedule leaves
        visible at t = 1. Step 1 reveals all that is left.
        """
        low = 1
        high = n
        n = n - 1
        while n > low:
            if bool(self.counts_at(n, left, schedule).any()):
                low = n
            else:
                high = n
            n = (low + high) // 2
        return n

    def reveal(self, step, proposal):
        return take_best(proposal.score("confidence"), counts_of(step, proposal))


def longest_prefix(score: Score, fits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Take the surest masks one after the other for as long as `fits(taken (R, L)) -> (R,)` holds, one at least."""
    free = score.values > -torch.inf
    taken = torch.zeros_like(free)
    growing = free.any(-1)

    for n in range(most_masks(free)):
        # The prefix (R, L) with one mask more
        pick = first_of(score, free & ~taken)
        longer = taken.scatter(1, pick, True) & free

        # Rows go on while a mask is left and the longer prefix fits
        growing = growing & (longer != taken).any(-1)
        if n > 0:
            growing = growing & fits(longer)
        if not bool(growing.any()):
            break
        taken = torch.where(growing.unsqueeze(1), longer, taken)
    return taken


def excess_entropy(entropy: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """sum H - max H over the positions `taken` (R, L) bool: (R,)."""
    entropy = torch.where(taken, entropy, 0)
    return entropy.sum(-1) - entropy.amax(-1)


def dream_share(left: torch.LongTensor, index: int, num_steps: int, last_time: float = 1e-3) -> torch.LongTensor:
    """K = floor(left (1 - t_(n+1) / t_n)) on the times t_n = 1 - (1 - eps) n / T, in the last step all that are left.

    Dream's count (arXiv 2508.15487, `generation_utils.py`) in step n = `index`, for every row by itself. Since eps is
    positive, a step can reveal nothing, and the last one takes more: 1, 2, 2, 3 for 8 masks in 4 steps.
    """
    if index + 1 >= num_steps:
        return left

    # 1 - t_(n+1) / t_n = (t_n - t_(n+1)) / t_n
    step = (1 - last_time) / num_steps
    start = 1 - index * step
    share = left.double() * (step / start)
    return share.floor().long()


def check_reveal_counts(reveal_counts: str) -> None:
    """Raise ValueError unless a way to count has a name."""
    if reveal_counts not in ("even", "dream"):
        raise ValueError(f"reveal_counts is {reveal_counts!r}, but it must be even or dream.")


def check_score(score: str, allowed) -> None:
    """Raise ValueError unless a score has one of the names `allowed`."""
    if score not in allowed:
        raise ValueError(f"score is {score!r}, but it must be one of {', '.join(allowed)}.")


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    """Raise ValueError unless low <= value <= high, where `high` None is no limit. NaN is never allowed."""
    if value >= low and (high is None or value <= high):
        return
    limits = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    raise ValueError(f"{name} is {value!r}, but it must be a number {limits}.")


def rounding_errors(values: torch.Tensor) -> torch.Tensor:
    """How far equal log-probabilities may lie apart, of the shape of `values`."""
    return torch.full_like(values, rounding_of(values.dtype))
