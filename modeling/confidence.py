"""How sure a proposal is of its positions, the likeliest tokens, and the positions that come first.

Equal things are equal up to rounding: masks that see the same have the same confidence, but a
network computes them in another order in every position and for every size of the batch. So
everything within rounding of the highest ties with it, and the lowest index is taken. A row then
gets the same tokens alone and in a batch.

Shapes: N positions, V vocabulary; R rows, L positions of a row.
"""

from dataclasses import dataclass

import torch

from .masked_diffusion import check_tokens_left

# Logits that a processor keeps in its cache. Scores of more at a time wait for the memory.
CACHED_LOGITS = 2**19
# exp(LOWEST) is 0, in float64 too, and 0 * LOWEST is a number, which 0 * -inf is not.
LOWEST = -1e4
# Logits of equal positions differed by up to 15 units of the last place, in networks of 12 layers
# and 1,024 tokens.
ROUNDINGS = 64


@dataclass
class Score:
    """How sure a proposal is, the higher the surer.

    Args:
        values: (N,), or (R, L).
        errors: the rounding errors of the values, of the same shape.
    """

    values: torch.Tensor
    errors: torch.Tensor

    @classmethod
    def of(cls, name: str, logits: torch.Tensor, dtype: torch.dtype) -> "Score":
        """The score `name` of logits (N, V), which a network made in the precision `dtype`.

        confidence: the log-odds log c - log(1 - c) of the likeliest token. They order as
            c = max p does, and their error is the error of the logits wherever c lies.
        entropy: sum_v p(v) log p(v) = -H.
        margin: p_(1) - p_(2), the likeliest less the second (Kim et al., arXiv 2502.06768).
        """
        highest = logits.amax(-1, keepdim=True)  # (N, 1)
        check_tokens_left(highest.isfinite())

        # A network in half precision adds in float32 and rounds the results to its own
        relative_error = rounding_of(logits.dtype) + torch.finfo(dtype).eps
        error = relative_error * (1 + highest.abs()).squeeze(-1)

        # Few positions at a time on a processor, all at once on a device
        size = max(1, len(logits))
        if logits.device.type == "cpu":
            size = max(1, CACHED_LOGITS // logits.shape[-1])
        parts = zip(logits.split(size), highest.split(size), error.split(size), strict=True)
        return cls.join([cls(*SCORES[name](*part)) for part in parts])

    @classmethod
    def join(cls, parts: list["Score"]) -> "Score":
        """The scores of several parts of the N positions."""
        return cls(
            values=torch.cat([part.values for part in parts]),
            errors=torch.cat([part.errors for part in parts]),
        )

    def scatter(self, at: torch.Tensor) -> "Score":
        """The N scores at their positions `at` (R, L) bool, -inf elsewhere."""
        lowest = self.values.new_full(at.shape, -torch.inf)
        exact = torch.zeros_like(lowest)
        return Score(
            values=lowest.masked_scatter(at, self.values),
            errors=exact.masked_scatter(at, self.errors),
        )


def log_odds(
    logits: torch.Tensor,
    highest: torch.Tensor,
    error: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log c - log(1 - c) and its error, (N,) each."""
    # log c - log(1 - c) = l_max - log sum_{v not likeliest} exp(l_v)
    likeliest = first_highest(logits, highest)
    others = logits.scatter(-1, likeliest, -torch.inf)
    values = highest.squeeze(-1) - others.logsumexp(-1)
    return values, error


def negative_entropy(
    logits: torch.Tensor,
    highest: torch.Tensor,
    error: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-H and its error, (N,) each.

    |dH| <= sum_v p(v) |log p(v) + H| |dl_v| <= 2 H |dl|, and H itself is a rounded sum.
    """
    # With s_v = l_v - max l and Z = sum_v exp(s_v), H = log Z - sum_v s_v exp(s_v) / Z
    shifted = (logits - highest).clamp_min(LOWEST)
    weights = shifted.exp()
    normalizer = weights.sum(-1)
    mean = (shifted * weights).sum(-1) / normalizer

    entropy = normalizer.log() - mean
    return -entropy, error * (1 + 2 * entropy)


def margin(
    logits: torch.Tensor,
    highest: torch.Tensor,
    error: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """p_(1) - p_(2) and its error, (N,) each. A vocabulary of one token has the margin 1."""
    # (N, 2), or (N, 1)
    num_tokens = min(2, logits.shape[-1])
    probs = logits.softmax(-1)
    highest_two = probs.topk(num_tokens, dim=-1).values

    second = highest_two[:, 1] if num_tokens > 1 else 0
    return highest_two[:, 0] - second, error


SCORES = {"confidence": log_odds, "entropy": negative_entropy, "margin": margin}


def likeliest_tokens(logits: torch.Tensor) -> torch.LongTensor:
    """The likeliest token (N,) of every row of `logits` (N, V), the lowest id within rounding.

    Raises:
        ValueError: a row holds NaN or no finite entry.
    """
    highest = logits.amax(-1, keepdim=True)
    check_tokens_left(highest.isfinite())
    return first_highest(logits, highest).squeeze(-1)


def first_highest(logits: torch.Tensor, highest: torch.Tensor) -> torch.LongTensor:
    """The first entry (N, 1) of a row of `logits` (N, V) within rounding of `highest` (N, 1)."""
    error = rounding_of(logits.dtype) * (1 + highest.abs())
    return first_index(logits >= highest - error)


def rounding_of(dtype: torch.dtype) -> float:
    """How far equal logits of a network may lie apart, as a share of their size."""
    return ROUNDINGS * torch.finfo(dtype).eps


def first_of(score: Score, left: torch.Tensor) -> torch.LongTensor:
    """The first position of every row within its error of the highest score: (R, 1).

    Only the positions `left` (R, L) bool count.
    """
    values = torch.where(left, score.values, -torch.inf)
    highest = values.amax(-1, keepdim=True)

    # Scores that differ by rounding are equal, so that every device takes the same one
    ties = values >= highest - score.errors
    return first_index(left & ties)


def take_best(score: Score, counts: torch.Tensor) -> torch.Tensor:
    """The `counts` (R,) surest positions of every row, taken one after the other: (R, L) bool."""
    free = score.values > -torch.inf

    # Rows that take all their positions need no order
    takes_all = counts >= free.sum(-1)
    taken = free & takes_all.unsqueeze(1)
    counts = torch.where(takes_all, 0, counts)

    # The others take one position after the other, (R, 1) of all rows at a time
    most = int(counts.max()) if len(counts) else 0
    for n in range(most):
        takes_one = (n < counts).unsqueeze(1)
        first = first_of(score, free & ~taken)
        is_taken = taken.gather(1, first) | takes_one
        taken = taken.scatter(1, first, is_taken)
    return taken


def first_index(flags: torch.Tensor) -> torch.LongTensor:
    """Index of the first True of every row: (N, V) -> (N, 1)."""
    return flags.to(torch.uint8).argmax(-1, keepdim=True)
