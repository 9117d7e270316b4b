"""From hidden states to log-probabilities of the vocabulary, in at least float32."""

import torch
from torch import nn

from .masked_diffusion import at_least_float32


def is_plain_linear(module: nn.Module | None) -> bool:
    """Whether `module` computes W h + b and nothing else (a head that carries an adapter does more)."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


TILE = 512, 4096  # rows and vocabulary of the logits that exist at a time: 8 MB


def linear_log_probs(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    """log softmax(W h + b) at `targets`: l_v - log sum_u exp(l_u), the sum taken tile by tile.

    Args:
        hidden: (N, H). head: H -> V, widened to at least float32 tile by tile. targets: (N,).
        excluded: (V,) bool, left out of the softmax; its log-probability is -inf.

    Returns:
        (N,), at least float32.
    """
    hidden = at_least_float32(hidden)
    bias = hidden.new_zeros(len(head.weight)) if head.bias is None else head.bias.to(hidden.dtype)
    bias, parts = bias.masked_fill(excluded, -torch.inf), []
    for rows, wanted in zip(hidden.split(TILE[0]), targets.split(TILE[0]), strict=True):
        normaliser = [
            nn.functional.linear(rows, weight.to(rows.dtype), shift).logsumexp(-1)
            for weight, shift in zip(head.weight.split(TILE[1]), bias.split(TILE[1]), strict=True)
        ]
        logits = (rows * head.weight[wanted].to(rows.dtype)).sum(-1) + bias[wanted]
        parts.append(logits - torch.stack(normaliser).logsumexp(0))
    return torch.cat(parts)
