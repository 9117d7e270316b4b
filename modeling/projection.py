"""From hidden states (N, H) to logits and log-probabilities (N, V), in at least float32.

A normaliser of bfloat16 logits beside a logit in float32 is off by nats, the more the larger the
logits are. So both are made here, in one precision, and outside of torch.autocast.

Shapes: N positions, H hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import nn

from .masked_diffusion import at_least_float32

HALF = (torch.bfloat16, torch.float16)

# Positions and tokens of a tile of logits in `linear_log_probs`: 8 MB in float32
TILE = 512, 4096


def is_plain_linear(module: nn.Module | None) -> bool:
    """Whether `module` computes W h + b and nothing else, with weights that can be read from it.

    Other heads have to be called: one with an adapter or hooks does more, quantised weights are
    something else, and offloaded weights come only when the module is called.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False

    parameters = [module._parameters.get("weight")]
    if module.bias is not None:
        parameters.append(module.bias)
    return all(is_plain_parameter(parameter) for parameter in parameters)


def is_plain_parameter(x) -> bool:
    """Whether `x` is a loaded parameter of floating point, and not of a class of its own."""
    return type(x) is nn.Parameter and x.is_floating_point() and not x.is_meta


def precision_of(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The precision of a module's inputs, taken from its first parameter of 16 bits or more.

    Quantised layers may have no such parameter, or the scales alone: their weights say nothing
    about the inputs.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and torch.finfo(parameter.dtype).bits >= 16:
            return parameter.dtype
    return otherwise


def full_precision(x: torch.Tensor) -> torch.autocast:
    """A context in which nothing on the device of `x` is cast to a lower precision."""
    return torch.autocast(x.device.type, enabled=False)


def wide_projection(head: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map of `head` from hidden states (..., H) to logits (..., V) in at least float32.

    The weights of a plain head in half precision are widened once. Any other head is called.
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
                hidden = hidden.to(precision_of(head, hidden.dtype))
                return at_least_float32(head(hidden))

    return project


def linear_log_probs(
    hidden: torch.Tensor,
    head: nn.Linear,
    targets: torch.Tensor,
    excluded: torch.Tensor,
) -> torch.Tensor:
    """log softmax(W h + b) at `targets`: l_v - log sum_u exp(l_u), the sum taken tile by tile.

    Args:
        hidden: (N, H).
        head: plain, H -> V. Its weights are widened to at least float32 tile by tile.
        targets: (N,).
        excluded: (V,) bool, left out of the softmax. Its log-probability is -inf.

    Returns:
        (N,), at least float32.
    """
    # A bias of -inf leaves a token out.
    hidden = at_least_float32(hidden)
    bias = hidden.new_zeros(len(head.weight))
    if head.bias is not None:
        bias = head.bias.to(hidden.dtype)
    bias = bias.masked_fill(excluded, -torch.inf)

    # Tiles of the weight (4096, H) with their biases, used for every chunk of positions
    num_positions, num_tokens = TILE
    tiles = list(zip(head.weight.split(num_tokens), bias.split(num_tokens), strict=True))
    chunks = zip(hidden.split(num_positions), targets.split(num_positions), strict=True)

    log_probs = []
    for h, v in chunks:
        with full_precision(h):
            # log sum_u exp(l_u): over the tokens u of each tile, then over the tiles
            sums = [log_sum_exp(h, weight, tile_bias) for weight, tile_bias in tiles]
            log_normaliser = torch.stack(sums).logsumexp(0)

            # l_v at the targets alone
            target_weight = head.weight[v].to(h.dtype)
            target_logits = (h * target_weight).sum(-1) + bias[v]
            log_probs.append(target_logits - log_normaliser)
    return torch.cat(log_probs)


def log_sum_exp(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """log sum_u exp(w_u h + b_u) over the tokens u of one tile: (N,)."""
    logits = nn.functional.linear(hidden, weight.to(hidden.dtype), bias)
    return logits.logsumexp(-1)


def projected_log_probs(
    features: torch.Tensor,
    project: Callable,
    targets: torch.Tensor,
    excluded: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """log softmax(project(h)) at `targets` (N,), for any head: (N,).

    Args:
        features: (N, ...).
        project: features -> logits (N, V) in at least float32.
        excluded: (V,) bool, left out of the softmax. Its log-probability is -inf.
        size: how many features are projected at a time.
    """
    # There are never more than `size` rows of logits
    log_probs = []
    chunks = zip(features.split(size), targets.split(size), strict=True)
    for chunk, v in chunks:
        logits = project(chunk).masked_fill(excluded, -torch.inf)
        of_targets = logits.gather(-1, v.unsqueeze(-1))
        target_logits = of_targets.squeeze(-1)
        log_probs.append(target_logits - logits.logsumexp(-1))
    return torch.cat(log_probs)
