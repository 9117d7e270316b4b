"""From hidden states (N, H) to logits and log-probabilities of the vocabulary (N, V), in at least float32.

A normaliser of bfloat16 logits beside a logit in float32 is off by nats, the more the larger the logits are. So both
are made here, in one precision, and outside of torch.autocast.
"""

from collections.abc import Callable

import torch
from torch import nn

from .masked_diffusion import at_least_float32

HALF = (torch.bfloat16, torch.float16)

# Rows and vocabulary of the logits that exist at a time in `linear_log_probs`: 8 MB.
TILE = 512, 4096


def is_plain_linear(module: nn.Module | None) -> bool:
    """Whether `module` computes W h + b and nothing else, with a W that lies there as it is.

    A head that carries an adapter does more; quantised weights are something else; offloaded ones come only when the
    module is called. Such modules have to be called.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    parameters = [module._parameters.get("weight")]
    if module.bias is not None:
        parameters.append(module.bias)
    if not all(type(x) is nn.Parameter and x.is_floating_point() and not x.is_meta for x in parameters):
        return False
    return not ("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def precision_of(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The precision in which a module takes its inputs: that of its first parameter of 16 bits or more.

    Quantised layers may have none, or the scales alone: their weights say nothing of the inputs.
    """
    floats = (x.dtype for x in module.parameters() if x.is_floating_point())
    return next((dtype for dtype in floats if torch.finfo(dtype).bits >= 16), otherwise)


def full_precision(x: torch.Tensor) -> torch.autocast:
    """A context in which nothing that is computed on the device of `x` is cast to a lower precision."""
    return torch.autocast(x.device.type, enabled=False)


def wide_projection(head: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map of `head` from hidden states (..., H) to logits (..., V) in at least float32.

    The weights of a plain head in half precision are widened once; any other head is called as it is.
    """
    if is_plain_linear(head) and head.weight.dtype in HALF:
        weight = head.weight.float()
        bias = None if head.bias is None else head.bias.float()

        def project(hidden: torch.Tensor) -> torch.Tensor:
            with full_precision(hidden):
                return nn.functional.linear(hidden.float(), weight, bias)
    else:

        def project(hidden: torch.Tensor) -> torch.Tensor:
            with full_precision(hidden):
                return at_least_float32(head(hidden.to(precision_of(head, hidden.dtype))))

    return project


def linear_log_probs(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    """log softmax(W h + b) at `targets`: l_v - log sum_u exp(l_u), the sum taken tile by tile.

    Args:
        hidden: (N, H). head: H -> V and plain, widened to at least float32 tile by tile. targets: (N,).
        excluded: (V,) bool, left out of the softmax; its log-probability is -inf.

    Returns:
        (N,), at least float32.
    """
    hidden = at_least_float32(hidden)
    bias = hidden.new_zeros(len(head.weight)) if head.bias is None else head.bias.to(hidden.dtype)
    bias = bias.masked_fill(excluded, -torch.inf)
    tiles = list(zip(head.weight.split(TILE[1]), bias.split(TILE[1]), strict=True))

    parts = []
    for rows, wanted in zip(hidden.split(TILE[0]), targets.split(TILE[0]), strict=True):
        with full_precision(rows):
            sums = [nn.functional.linear(rows, weight.to(rows.dtype), b).logsumexp(-1) for weight, b in tiles]
            logits = (rows * head.weight[wanted].to(rows.dtype)).sum(-1) + bias[wanted]
            parts.append(logits - torch.stack(sums).logsumexp(0))
    return torch.cat(parts)


def projected_log_probs(
    features: torch.Tensor, project: Callable, targets: torch.Tensor, excluded: torch.Tensor, size: int
) -> torch.Tensor:
    """log softmax(project(h)) at `targets` (N,), for any head, in chunks of `size` features: (N,).

    Args:
        features: (N, ...). project: features -> logits (N, V) in at least float32.
        excluded: (V,) bool, left out of the softmax; its log-probability is -inf.
    """
    parts = []
    for chunk, wanted in zip(features.split(size), targets.split(size), strict=True):
        logits = project(chunk).masked_fill(excluded, -torch.inf)
        chosen = logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        parts.append(chosen - logits.logsumexp(-1))
    return torch.cat(parts)
