"""How sure a proposal is of its positions, the likeliest tokens, and the positions that are taken first.

Equal things are equal up to rounding: masks that see the same have the same confidence, but a network computes them in
another order in every position and for every size of the batch. So whatever is within rounding of the highest ties with
it, and the lowest index is taken. A row then gets the same tokens alone and in a batch.
"""

from dataclasses import dataclass

import torch

from .masked_diffusion import check_tokens_left

# Logits of equal positions differed by up to 15 units of the last place, in networks of 12 layers and 1,024 tokens.
ROUNDINGS = 64


@dataclass
class Score:
    """How sure a proposal is, the higher the surer, and the rounding error of that: both (N,), or (R, L)."""

    values: torch.Tensor
    errors: torch.Tensor

    @classmethod
    def of(cls, name: str, logits: torch.Tensor, dtype: torch.dtype) -> "Score":
        """The score `name` of logits (N, V), which a network made in the precision `dtype`.

        confidence: the log-odds log c - log(1 - c) of the likeliest token. They order as c = max p does, and their
            error is that of the logits wherever c lies.
        entropy: sum_v p(v) log p(v) = -H.
        margin: p_(1) - p_(2), the likeliest less the second (Kim et al., arXiv 2502.06768).
        """
        highest = logits.amax(-1, keepdim=True)
        check_tokens_left(highest.isfinite())
        # A network in half precision adds in float32 and rounds the results to its own.
        error = (rounding_of(logits.dtype) + torch.finfo(dtype).eps) * (1 + highest.abs())
        return cls(*SCORES[name](logits, highest, error.squeeze(-1)))

    @classmethod
    def join(cls, parts: list["Score"]) -> "Score":
        """The scores of several parts of the N positions."""
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.errors for part in parts]))

    def spread(self, at: torch.Tensor) -> "Score":
        """The N scores at their positions `at` (R, L) bool, -inf elsewhere."""
        nowhere = self.values.new_full(at.shape, -torch.inf)
        return Score(nowhere.masked_scatter(at, self.values), torch.zeros_like(nowhere).masked_scatter(at, self.errors))


def log_odds(logits: torch.Tensor, highest: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log c - log(1 - c) and its error, (N,) each."""
    others = logits.scatter(-1, first_highest(logits, highest), -torch.inf).logsumexp(-1)
    return highest.squeeze(-1) - others, error


def negative_entropy(logits: torch.Tensor, highest: torch.Tensor, error: torch.Tensor):
    """-H and its error, (N,) each: |dH| <= sum_v p(v) |log p(v) + H| |dl_v| <= 2 H |dl|, and H is a rounded sum."""
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    return -entropy, error * (1 + 2 * entropy)


def margin(logits: torch.Tensor, highest: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """p_(1) - p_(2) and its error, (N,) each; a vocabulary of one token has the margin 1."""
    first_two = logits.softmax(-1).topk(min(2, logits.shape[-1]), dim=-1).values
    second = first_two[:, 1] if first_two.shape[1] > 1 else 0
    return first_two[:, 0] - second, error


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
    """The first entry of every row of `logits` (N, V) within rounding of the highest (N, 1): (N, 1)."""
    return first_index(logits >= highest - rounding_of(logits.dtype) * (1 + highest.abs()))


def rounding_of(dtype: torch.dtype) -> float:
    """How far equal logits of a network may lie apart, as a share of their size."""
    return ROUNDINGS * torch.finfo(dtype).eps


def first_of(score: Score, left: torch.Tensor) -> torch.LongTensor:
    """The first position of every row within its error of the highest score among those `left` (R, L) bool: (R, 1)."""
    values = torch.where(left, score.values, -torch.inf)
    highest = values.amax(-1, keepdim=True)
    return first_index(left & (values >= highest - score.errors))


def take_best(score: Score, counts: torch.Tensor) -> torch.Tensor:
    """The positions (R, L) bool that are taken one after the other, `counts` (R,) of every row, the surest first."""
    free = score.values > -torch.inf
    everything = counts >= free.sum(-1)
    taken = free & everything.unsqueeze(1)
    counts = torch.where(everything, 0, counts)

    for n in range(int(counts.max()) if len(counts) else 0):
        first = first_of(score, free & ~taken)
        taken = taken.scatter(1, first, taken.gather(1, first) | (n < counts).unsqueeze(1))
    return taken


def first_index(flags: torch.Tensor) -> torch.LongTensor:
    """Index of the first True of every row: (N, V) -> (N, 1)."""
    return flags.to(torch.uint8).argmax(-1, keepdim=True)
