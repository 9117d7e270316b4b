"""Planners that keep the positions of a step apart, so that their tokens hardly depend on each other.

The tokens of a step are drawn independently, and neighbours in a text depend on each other most. Shapes: B rows of a
batch, R rows of a step, L positions. K is the number of masks that a step reveals.
"""

from dataclasses import dataclass

import torch

from .confidence import SCORES, Score, first_of
from .devices import send
from .planners import Planner, check_range, check_score
from .samplers import MASKS, PROPOSAL


@dataclass(frozen=True)
class Spaced(Planner):
    """S = K masks, the best first, each at least d positions from those that the step has taken already.

    Where no mask is that far away from all of them, d falls to the largest distance that some mask still has. Unless
    `distance` is given, d is the even spacing ceil(span / K), where the span reaches from the first mask of the row to
    its last: the largest distance that K positions can have. With `score="random"` the order is drawn, and S depends on
    the masks alone.

    Args:
        num_steps: T.
        distance: d, in positions.
        score: confidence, entropy, margin or random.
    """

    num_steps: int = 128
    distance: int | None = None
    score: str = "entropy"

    def __post_init__(self):
        check_score(self.score, (*SCORES, "random"))
        if self.distance is not None:
            check_range("distance", self.distance, 1, None)

    @property
    def sees(self):
        return MASKS if self.score == "random" else PROPOSAL

    def steps(self, state, noise):
        for step in super().steps(state, noise):
            if self.score == "random":
                step.reveal = self.at_random(state, step, noise)
            yield step

    def at_random(self, state, step, noise) -> torch.Tensor:
        """S (B, L) in an order that every step draws anew."""
        # (R, L) a uniform for every mask, the highest first
        rows = send(step.rows, state.ids.device)
        masked = state.masked[rows].cpu()
        uniforms = noise.per_position(step.rows, masked)
        order = torch.where(masked, uniforms, -torch.inf)
        score = Score(order, torch.zeros_like(order))
        taken = self.take(score, step.counts[step.rows])

        # (B, L), nothing in the other rows
        nothing = torch.zeros_like(state.free, device="cpu")
        return nothing.index_copy(0, step.rows, taken)

    def reveal(self, step, proposal):
        return self.take(proposal.score(self.score), step.counts[step.rows])

    def take(self, score: Score, counts: torch.Tensor) -> torch.Tensor:
        """Take `counts` (R,) positions, a number on the CPU, one after the other: (R, L) bool."""
        free = score.values > -torch.inf
        most = int(counts.max()) if len(counts) else 0
        counts = torch.minimum(send(counts, free.device), free.sum(-1))
        columns = torch.arange(free.shape[1], device=free.device)

        # Distance of every position to the nearest one that is taken (R, L), and d (R, 1)
        nearest = torch.full_like(columns, free.shape[1]).expand(free.shape)
        if self.distance is None:
            distance = even_spacing(free, counts)
        else:
            distance = torch.full_like(counts, self.distance)
        distance = distance.unsqueeze(1)

        taken = torch.zeros_like(free)
        for n in range(most):
            # 1. d falls to what is still possible
            left = free & ~taken
            farthest = torch.where(left, nearest, 0).amax(-1, keepdim=True)
            distance = torch.minimum(distance, farthest)

            # 2. The best of the masks that are far enough away, in the rows that take more than n
            pick = first_of(score, left & (nearest >= distance))  # (R, 1)
            picks = (n < counts).unsqueeze(1)
            is_taken = taken.gather(1, pick) | picks
            taken = taken.scatter(1, pick, is_taken)

            # 3. Distances to the new position count too
            to_pick = (columns - pick).abs()
            nearest = torch.where(picks, torch.minimum(nearest, to_pick), nearest)
        return taken


@dataclass(frozen=True)
class Dilated(Planner):
    """S = the next K masks in the order of their bit-reversed index (p + offset) mod 2^b, far apart from each other.

    The dilated unmasking schedule (DUS, arXiv 2506.19037), with one offset for every row: drawn, or `offset`. p counts
    from the first mask of the row, and 2^b covers the row's span of masks.

    Args:
        num_steps: T.
        offset: a fixed one, so that nothing is random. Drawn unless given.
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
            # The K masks (B, L) with the lowest places in the order among those that are left
            masked = state.masked.cpu()
            places = torch.where(masked, order, torch.iinfo(order.dtype).max)
            ranks = places.argsort(-1).argsort(-1)

            step.reveal = masked & (ranks < step.counts.unsqueeze(1))
            yield step

    def order(self, free: torch.Tensor, noise) -> torch.LongTensor:
        """The place (B, L) of every position of `free` (B, L) bool in the order."""
        if not free.numel():
            return torch.zeros_like(free, dtype=torch.long)
        columns = torch.arange(free.shape[1], device=free.device)
        first, last = first_and_last(free)
        bits = bit_length(last - first)  # (B, 1)

        # (p + offset) mod 2^b, (B, L)
        offset = torch.full_like(first, self.offset or 0)
        if self.offset is None:
            rows = torch.arange(len(free), device=free.device)
            uniforms = noise.per_row(rows, free.device)
            offset = (uniforms * 2**bits).long()
        index = (columns - first + offset) % 2**bits

        # Bit j of the index becomes bit b - 1 - j of the place
        place = torch.zeros_like(index)
        for bit in range(int(bits.max())):
            mirrored = (bits - 1 - bit).clamp_min(0)
            value = (index >> bit) & 1
            place += torch.where(bit < bits, value << mirrored, 0)
        return place


def even_spacing(free: torch.Tensor, counts: torch.Tensor) -> torch.LongTensor:
    """ceil(span / K) (R,), the distance at which K = `counts` (R,) positions fill the span of the masks `free` (R, L).

    Two of the masks at 0, 1, 3, 4 and 5 are best three positions apart.
    """
    # A ceiling by whole numbers, (a + K - 1) // K
    first, last = first_and_last(free)
    span = (last - first + 1).squeeze(-1)
    counts = counts.clamp_min(1)
    return (span + counts - 1) // counts


def first_and_last(free: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor]:
    """The first and the last True of every row of `free` (R, L) bool, (R, 1) each. 0 and L - 1 in rows without any."""
    flags = free.long()
    first = flags.argmax(-1, keepdim=True)
    after_last = flags.flip(-1).argmax(-1, keepdim=True)
    last = free.shape[1] - 1 - after_last
    return first, last


def bit_length(numbers: torch.LongTensor) -> torch.LongTensor:
    """The least b with n < 2^b for every n of `numbers`."""
    bits = torch.zeros_like(numbers)
    while bool((numbers >= 2**bits).any()):
        bits = bits + (numbers >= 2**bits).long()
    return bits
