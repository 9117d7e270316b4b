"""Planners: samplers that choose by more than coins where a step reveals. Their likelihood is exact where S follows
from what is visible, because a text is then reached by one path only.

Each class is one rule, with its formula and source. p_i is the proposal at mask i, c_i = max_v p_i(v) its confidence,
H_i its entropy. K is an even share of the masks that are left: ceil(left / steps left), at least one.

Shapes: B rows of a batch, R rows of a step, L positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .confidence import SCORES, Score, first_of, rounding_of, take_best
from .masked_diffusion import reveal_probability
from .samplers import MASKS, PROPOSAL, TOKENS, Sampler, Step, most_masks, same_time


class Planner(Sampler):
    """A sampler that sees the proposal at all masks. It takes at most T steps, and one position a step at least."""

    sees = PROPOSAL
    num_steps: int | None = None
    reveal_counts: str = "even"

    def steps_in(self, free):
        most = most_masks(free)
        return most if self.num_steps is None else min(self.num_steps, most)

    def steps(self, state, noise):
        total = state.free.sum(-1).cpu()
        memory = {}
        left, index = total, 0
        while bool(left.any()):
            counts = self.share(left, index)
            rows = ((counts > 0) & (left > 0)).nonzero().squeeze(-1)
            if len(rows):
                yield Step(state.time_of(left, total), counts=counts, rows=rows, index=index, memory=memory)
                left = state.masked.sum(-1).cpu()
            index = index + 1

    def share(self, left: torch.Tensor, index: int) -> torch.Tensor:
        """K (B,) for rows with `left` (B,) masks in step `index`; 1 for planners that have no T."""
        if self.num_steps is None:
            return torch.ones_like(left)
        if self.reveal_counts == "dream":
            return dream_share(left, index, self.num_steps)
        steps_left = max(self.num_steps - index, 1)
        return (left + steps_left - 1) // steps_left


def counts_of(step: Step, proposal) -> torch.Tensor:
    """K (R,) of the rows of a step."""
    return step.counts[step.rows].to(proposal.ids.device)


@dataclass(frozen=True)
class TopK(Planner):
    """S = the K best masks by score, without regard to each other.

    With temperature 0: LLaDA's `low_confidence` (arXiv 2502.09992); Dream's `maskgit_plus`, `topk_margin` and `entropy`
    (arXiv 2508.15487); the margin order of Kim et al. (arXiv 2502.06768). When tokens are drawn, neighbours of what is
    known are revealed together, and they depend on each other most: `Spaced` is far better then.

    Args:
        num_steps: T. score: confidence, entropy or margin.
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
class Spaced(Planner):
    """S = K masks, the best first, each at least d positions from those that the step has taken already.

    Where no mask is that far away from all of them, d is halved. With `score="random"` the order is drawn, and S
    depends on the masks alone.

    Args:
        num_steps: T. distance: d. score: confidence, entropy, margin or random.
    """

    num_steps: int = 128
    distance: int = 8
    score: str = "entropy"

    def __post_init__(self):
        check_score(self.score, (*SCORES, "random"))
        check_range("distance", self.distance, 1, None)

    @property
    def sees(self):
        return MASKS if self.score == "random" else PROPOSAL

    def steps(self, state, noise):
        for step in super().steps(state, noise):
            if self.score == "random":
                # Every step draws the order anew, among the masks of the rows that act.
                masked = state.masked[step.rows.to(state.ids.device)].cpu()
                order = torch.where(masked, noise.per_position(step.rows, masked), -torch.inf)
                taken = self.take(Score(order, torch.zeros_like(order)), step.counts[step.rows])
                step.reveal = torch.zeros_like(state.free, device="cpu").index_copy(0, step.rows, taken)
            yield step

    def reveal(self, step, proposal):
        return self.take(proposal.score(self.score), counts_of(step, proposal))

    def take(self, score: Score, counts: torch.Tensor) -> torch.Tensor:
        """The positions (R, L) bool that `counts` (R,) picks take."""
        free = score.values > -torch.inf
        columns = torch.arange(free.shape[1], device=free.device)
        taken = torch.zeros_like(free)
        nearest = torch.full_like(columns, free.shape[1]).expand(free.shape)  # to a position that is taken, (R, L)
        distance = torch.full_like(counts, self.distance).unsqueeze(1)

        counts = torch.minimum(counts, free.sum(-1))
        for n in range(int(counts.max()) if len(counts) else 0):
            left = free & ~taken
            far = left & (nearest >= distance)
            while bool((crowded := left.any(-1, keepdim=True) & ~far.any(-1, keepdim=True)).any()):
                distance = torch.where(crowded, distance // 2, distance)
                far = left & (nearest >= distance)

            pick = first_of(score, far)
            picks = (n < counts).unsqueeze(1)
            taken = taken.scatter(1, pick, taken.gather(1, pick) | picks)
            nearest = torch.where(picks, torch.minimum(nearest, (columns - pick).abs()), nearest)
        return taken


@dataclass(frozen=True)
class Dilated(Planner):
    """S = the next K masks in the order of their bit-reversed index (p + offset) mod 2^b, far apart from each other.

    The dilated unmasking schedule (DUS, arXiv 2506.19037), with one offset for every row: drawn, or `offset`. p counts
    from the first mask of the row, and 2^b covers the row's span of masks.

    Args:
        num_steps: T. offset: a fixed one, so that nothing is random; drawn unless given.
    """

    num_steps: int = 128
    offset: int | None = None
    sees = MASKS

    @property
    def is_deterministic(self):
        return self.offset is not None

    def steps(self, state, noise):
        order = self.order(state.free.cpu(), noise)
        for step in super().steps(state, noise):
            # The K masks (B, L) that come next: those with the lowest places among what is left
            masked = state.masked.cpu()
            places = torch.where(masked, order, torch.iinfo(order.dtype).max).argsort(-1).argsort(-1)
            step.reveal = masked & (places < step.counts.unsqueeze(1))
            yield step

    def order(self, free: torch.Tensor, noise) -> torch.LongTensor:
        """The place (B, L) of every position of `free` (B, L) bool in the order."""
        columns = torch.arange(free.shape[1], device=free.device)
        if not free.numel():
            return torch.zeros_like(free, dtype=torch.long)
        first = free.long().argmax(-1, keepdim=True)
        last = free.shape[1] - 1 - free.long().flip(-1).argmax(-1, keepdim=True)
        bits = bit_length(last - first)  # (B, 1)

        offset = torch.full_like(first, self.offset or 0)
        if self.offset is None:
            rows = torch.arange(len(free), device=free.device)
            offset = (noise.per_row(rows, free.device) * 2**bits).long()
        index = (columns - first + offset) % 2**bits

        reversed_index = torch.zeros_like(index)
        for bit in range(int(bits.max()) if len(bits) else 0):
            mirrored = (bits - 1 - bit).clamp_min(0)
            reversed_index += torch.where(bit < bits, ((index >> bit) & 1) << mirrored, 0)
        return reversed_index


@dataclass(frozen=True)
class EntropyBound(Planner):
    """S = the longest prefix of the masks in the order of a score with sum H_i - max H_i <= gamma, at least one mask.

    The bound is on the total correlation that independent draws ignore (EB sampler, arXiv 2505.24857). It holds in
    every row by itself. The number of steps is not fixed.

    Args:
        gamma: in nats. score: the order.
    """

    gamma: float = 0.1
    score: str = "entropy"

    def __post_init__(self):
        check_score(self.score, SCORES)
        check_range("gamma", self.gamma, 0, None)

    def reveal(self, step, proposal):
        score, entropy = proposal.score(self.score), proposal.entropy()
        return longest_prefix(score, lambda taken: excess_entropy(entropy, taken) <= self.gamma)


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
        doubts = (-score.values).sort(dim=-1).values.sigmoid()  # 1 - c_(n), n = 1 .. L
        n = torch.arange(1, doubts.shape[1] + 1, device=doubts.device)
        fits = ((n + 1) * doubts < self.factor) & (n <= free.sum(-1, keepdim=True))
        return take_best(score, (fits * n).amax(-1).clamp_min(1))


@dataclass(frozen=True)
class Threshold(Planner):
    """S = all masks with c_i >= theta, and always the surest (Fast-dLLM, arXiv 2505.22618: theta = 0.9).

    With `fill_up` the K surest where fewer than K are that sure (LLaDA2: theta = 0.95).

    Args:
        threshold: theta. fill_up: reveal K at least, so that T steps are enough. num_steps: T.
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
        sure = proposal.free & (score.values.sigmoid() >= self.threshold)
        return sure | take_best(score, counts_of(step, proposal))


@dataclass(frozen=True)
class Klass(Planner):
    """S = the masks with c_i > theta and KL(p_i^n || p_i^(n-1)) < eps in h steps in a row; the K surest if none is.

    KLASS (arXiv 2511.05664). It remembers the proposal of the last step, (R, L, V) numbers. The last of T steps reveals
    what is left.

    Args:
        threshold: theta. kl_threshold: eps, in nats. history_length: h. num_steps: T of the share K.
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
        stable = self.steady_steps(step, proposal) >= self.history_length
        sure = stable & (score.values.sigmoid() > self.threshold)
        otherwise = take_best(score, counts_of(step, proposal))
        is_last = step.index + 1 >= self.num_steps
        return otherwise if is_last else torch.where(sure.any(-1, keepdim=True), sure, otherwise)

    def steady_steps(self, step: Step, proposal) -> torch.Tensor:
        """(R, L) in how many steps in a row the proposal of a mask has hardly changed."""
        memory, rows = step.memory, step.rows.to(proposal.ids.device)
        row, column = proposal.at.nonzero().unbind(-1)
        row = rows[row]
        if not memory:
            shape = len(step.t), proposal.ids.shape[1]
            memory["last"] = torch.full((*shape, proposal.vocab_size), torch.nan, device=rows.device)
            memory["steady"] = torch.zeros(shape, dtype=torch.long, device=rows.device)

        # NaN, where there was no step before, is not less than anything
        for part, logits in proposal.logits(proposal.numbers(None)):
            now, place = logits.log_softmax(-1).float(), (row[part], column[part])
            kl = torch.where(now > -torch.inf, now.exp() * (now - memory["last"][place]), 0).sum(-1)
            memory["steady"][place] = torch.where(kl < self.kl_threshold, memory["steady"][place] + 1, 0)
            memory["last"][place] = now
        return memory["steady"][rows]


@dataclass(frozen=True)
class LowConfidence(Planner):
    """S = the K masks whose drawn token has the largest probability.

    LLaDA's `low_confidence` and Dream's `maskgit_plus` with a temperature. S looks at what was drawn, so that the
    tokens that are kept are likelier than the proposal: the distribution is another one, and no likelihood is known.

    Args:
        num_steps: T. reveal_counts: as in `TopK`.
    """

    num_steps: int = 128
    reveal_counts: str = "even"
    sees = TOKENS

    def __post_init__(self):
        check_reveal_counts(self.reveal_counts)

    def reveal(self, step, proposal):
        free = proposal.free
        values = torch.where(free, -proposal.nats(proposal.drawn), -torch.inf)
        errors = rounding_errors(values)
        return take_best(Score(values, errors), counts_of(step, proposal))


@dataclass(frozen=True)
class MostConfident(Planner):
    """Without sampling, in place of `Ancestral`: step n reveals the round(|M| r_n) surest masks, the last one all.

    Without a number of steps one mask at a time, in place of `FirstHitting`.

    The share of the masks that a step reveals grows from step to step (except that the first may take what the
    schedule leaves visible at t = 1), so that the next step which reveals anything is found by bisection.
    """

    num_steps: int | None = 128
    has_clock = True

    def steps_in(self, free):
        return super().steps_in(free) if self.num_steps is None else self.num_steps

    def steps(self, state, noise):
        if self.num_steps is None:
            yield from super().steps(state, noise)
            return
        left = state.free.sum(-1).cpu()

        def counts(n: int) -> torch.Tensor:
            """(B,) how many positions step n reveals."""
            times = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu") / self.num_steps
            share = reveal_probability(*state.schedule.alpha(times))
            return (left * share).round(decimals=9).round().long()  # so that 1.4999999999 is the half it stands for

        n = self.num_steps
        while n >= 1 and bool(left.any()):
            taken = counts(n)
            if bool(taken.any()):
                rows = taken.nonzero().squeeze(-1)
                yield Step(same_time(n / self.num_steps, left), counts=taken, rows=rows, index=self.num_steps - n)
                left = left - taken

            low, high = 1, n  # step `low` reveals something, the steps from `high` on do not
            n = n - 1
            while n > low:
                if bool(counts(n).any()):
                    low = n
                else:
                    high = n
                n = (low + high) // 2

    def reveal(self, step, proposal):
        return take_best(proposal.score("confidence"), counts_of(step, proposal))


def longest_prefix(score: Score, fits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Take the surest masks one after the other for as long as `fits(taken (R, L)) -> (R,)` holds; one at least."""
    free = score.values > -torch.inf
    taken = torch.zeros_like(free)
    growing = free.any(-1)
    for n in range(most_masks(free)):
        pick = first_of(score, free & ~taken)
        more = taken.scatter(1, pick, True) & free
        growing = growing & (more != taken).any(-1) & (fits(more) | (n == 0))
        taken = torch.where(growing.unsqueeze(1), more, taken)
        if not bool(growing.any()):
            break
    return taken


def excess_entropy(entropy: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """sum H - max H over the positions `taken` (R, L) bool: (R,)."""
    of_taken = torch.where(taken, entropy, 0)
    return of_taken.sum(-1) - of_taken.amax(-1)


def bit_length(numbers: torch.LongTensor) -> torch.LongTensor:
    """The least b with n < 2^b for every n of `numbers`."""
    bits = torch.zeros_like(numbers)
    while bool((numbers >= 2**bits).any()):
        bits = bits + (numbers >= 2**bits).long()
    return bits


def dream_share(left: torch.LongTensor, index: int, num_steps: int, last_time: float = 1e-3) -> torch.LongTensor:
    """K = floor(left (1 - t_(n+1) / t_n)) on the times t_n = 1 - (1 - eps) n / T, in the last step all that are left.

    Dream's count (arXiv 2508.15487, `generation_utils.py`) in step n = `index`, for every row by itself. Since eps is
    positive, a step can reveal nothing, and the last one takes more: 1, 2, 2, 3 for 8 masks in 4 steps.
    """
    if index + 1 >= num_steps:
        return left
    step = (1 - last_time) / num_steps
    start = 1 - index * step
    return (left.double() * (step / start)).floor().long()


def check_reveal_counts(reveal_counts: str) -> None:
    if reveal_counts not in ("even", "dream"):
        raise ValueError(f"reveal_counts is {reveal_counts!r}, but it must be even or dream.")


def check_score(score: str, allowed) -> None:
    if score not in allowed:
        raise ValueError(f"score is {score!r}, but it must be one of {', '.join(allowed)}.")


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    if not low <= value or (high is not None and not value <= high):
        limits = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} is {value!r}, but it must be a number {limits}.")


def rounding_errors(values: torch.Tensor) -> torch.Tensor:
    """How far equal log-probabilities may lie apart, of the shape of `values`."""
    return torch.full_like(values, rounding_of(values.dtype))
