"""Without sampling: the likeliest tokens, and the positions at which they are likeliest.

Equal things are equal up to rounding: masks that see the same have the same confidence, but a network computes them in
another order in every position and for every size of the batch. So whatever is within rounding of the highest ties with
it, and the lowest index is taken. A row then gets the same tokens alone and in a batch.
"""

import torch

from .masked_diffusion import check_tokens_left

# Logits of equal positions differed by up to 15 units of the last place, in networks of 12 layers and 1,024 tokens.
ROUNDINGS = 64


def likeliest_tokens(logits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The likeliest token of every row of `logits` (N, V), how confident that is, and how exactly that is known.

    Confidence is the log-odds log p - log(1 - p): it orders as p does, and its error is that of the logits wherever
    p lies.

    Args:
        logits: (N, V) in at least float32. -inf is never taken.
        dtype: the precision of the network, in which the logits were made.

    Returns:
        Token ids, log-odds and the rounding error of the log-odds, (N,) each.

    Raises:
        ValueError: a row holds NaN or no finite entry.
    """
    highest = logits.amax(-1, keepdim=True)
    check_tokens_left(highest.isfinite())
    scale = 1 + highest.abs()
    exact = ROUNDINGS * torch.finfo(logits.dtype).eps
    tokens = first_index(logits >= highest - exact * scale)

    others = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    # A network in half precision adds in float32 and rounds the results to its own.
    error = (exact + torch.finfo(dtype).eps) * scale
    return tokens.squeeze(-1), (highest - others).squeeze(-1), error.squeeze(-1)


def most_confident(log_odds: torch.Tensor, errors: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The positions that are taken one after the other, each the first of those within its error of the highest left.

    Args:
        log_odds: (B, L), -inf where nothing can be taken. errors: (B, L). counts: (B,) how many are taken.

    Returns:
        (B, L) bool.
    """
    free = log_odds > -torch.inf
    everything = counts >= free.sum(-1)
    taken = free & everything.unsqueeze(1)
    counts = torch.where(everything, 0, counts)
    for n in range(int(counts.max()) if len(counts) else 0):
        left = torch.where(taken, -torch.inf, log_odds)
        highest = left.amax(-1, keepdim=True)
        first = first_index(left >= highest - errors)
        taken = taken.scatter(1, first, taken.gather(1, first) | (n < counts).unsqueeze(1))
    return taken


def first_index(flags: torch.Tensor) -> torch.Tensor:
    """Index of the first True of every row: (N, V) -> (N, 1)."""
    return flags.to(torch.uint8).argmax(-1, keepdim=True)


__all__ = ["likeliest_tokens", "most_confident"]
