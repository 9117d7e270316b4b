"""What networks do, found out by trying: whether they are causal, and whether padding changes what they predict.

Probes run in eval mode, leave the network and the global random numbers as they are, and decide nothing where the
network does not accept their input.
"""

from collections.abc import Callable
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from .evaluation_mode import evaluating
from .modeling_mdlm import MDLMPreTrainedModel
from .network_facts import device_of

# Types of transformers in which padding takes part though it is masked: tokens are mixed without a mask, convolved,
# pooled or hashed in blocks. A probe in half precision may miss the smaller of these effects.
SEE_PADDING = {"convbert", "fnet", "funnel", "mobilebert", "mra", "nystromformer", "reformer", "yoso"}

# (B, L) ids, attention mask and sigma (B,), and what else goes with the ids, to logits (B, L, V)
Logits = Callable[..., torch.Tensor]

# What was found of every network: the widths, as powers of two, at which padding had no effect; None if it had one
_clean_widths: WeakKeyDictionary[nn.Module, set[int] | None] = WeakKeyDictionary()
_lock = Lock()


# ------------------------------------------------------------------------------------------------------------ causality


def is_causal(model: nn.Module) -> bool:
    """Whether a later token leaves the logits before it as they are; a model that fails counts as causal."""
    device = device_of(model)
    if not isinstance(model, PreTrainedModel) or device.type == "meta":
        return True
    if isinstance(model, MDLMPreTrainedModel) or model.config.is_encoder_decoder:
        return getattr(model.config, "causal", False)
    ids = torch.zeros(2, 3, dtype=torch.long, device=device)
    ids[1, -1] = 1

    def logits_of(ids):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True).logits

    logits = tried([model], lambda: logits_of(ids)[:, 0], ids.device)
    return logits is None or alike(logits[0], logits[1])


# -------------------------------------------------------------------------------------------------------------- padding


def sees_padding(
    network: nn.Module,
    logits_of: Logits,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    timesteps: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> bool:
    """Whether padding changes the logits of the text before it, tried with the shortest row of a batch.

    The row runs alone and with its padding, which is tried as it is and with two other ids. Some networks mix only long
    texts: every doubling of the width is tried once, until an effect is found. It is remembered as long as the network
    lives, and never saved.

    Args:
        network: the denoiser. logits_of: how it is called.
        input_ids: (B, L), aligned left. attention_mask: (B, L), with a 0 somewhere. timesteps: (B,) or one for all.
        inputs: (B, L), what else goes with the ids.
    """
    if isinstance(network, MDLMPreTrainedModel):
        return False
    config = getattr(network, "config", None)
    known = getattr(config, "model_type", None) in SEE_PADDING
    if known or getattr(config, "attention_type", None) == "block_sparse":  # BigBird in long texts
        return True
    length, width = shortest_text(attention_mask), attention_mask.shape[1]
    with _lock:
        clean = _clean_widths.get(network, set())
    if clean is None or width.bit_length() in clean:
        return clean is None
    if length == width:  # no row with both text and padding
        return False

    row = (attention_mask.sum(-1) == length).nonzero()[0]
    ids, real, sigma = input_ids[row], attention_mask[row], of_rows(timesteps, row)
    padded = [ids] + [ids.masked_fill(real == 0, filler) for filler in (0, 1)]

    of_ids = {name: x[row] for name, x in inputs.items()}

    def both():
        alone = logits_of(ids[:, :length], None, sigma, **{name: x[:, :length] for name, x in of_ids.items()})
        return [alone] + [logits_of(filled, real, sigma, **of_ids)[:, :length] for filled in padded]

    found = tried([network], both, input_ids.device)
    if found is None:
        return False
    alone, *beside_padding = found
    sees = not all(alike(alone, logits) for logits in beside_padding)
    with _lock:
        _clean_widths[network] = None if sees else clean | {width.bit_length()}
    return sees


def without_padding(
    logits_of: Logits,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    timesteps: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Logits (B, L, V) of rows aligned left that run without their padding, rows of one length at a time.

    Further `inputs` (B, L), as token types, are cut with the ids.
    """
    lengths, logits = attention_mask.sum(-1), None
    for length in sorted(set(lengths.tolist()) - {0}):
        rows = (lengths == length).nonzero()[:, 0]
        of_ids = {name: x[rows, :length] for name, x in inputs.items()}
        part = logits_of(input_ids[rows, :length], None, of_rows(timesteps, rows), **of_ids)
        if logits is None:
            logits = part.new_zeros(*input_ids.shape, part.shape[-1])
        logits[rows, :length] = part
    return logits


def shortest_text(attention_mask: torch.Tensor) -> int:
    """Tokens of the shortest row that has any; the width if none has."""
    lengths, width = attention_mask.sum(-1), attention_mask.shape[1]
    return int(lengths.masked_fill(lengths == 0, width).min())


def align_left(attention_mask: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
    """The order of the columns (B, L) that puts the text of every row first, and the attention mask in that order."""
    order = (attention_mask == 0).long().argsort(dim=-1, stable=True)
    return order, attention_mask.gather(1, order)


# --------------------------------------------------------------------------------------------------------------- shared


def tried(networks: list[nn.Module], compute: Callable, device: torch.device):
    """What `compute` returns in eval mode, without gradients and without a trace; None if the network raises."""
    devices = [device] if device.type == "cuda" else []
    with evaluating(*networks), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            return compute()
        except Exception:  # whatever a network of others raises: it does not take such an input
            return None


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results differ by no more than rounding."""
    scale = one.nan_to_num(posinf=0, neginf=0).abs().max().clamp_min(1)
    tolerance = torch.finfo(one.dtype).eps ** 0.75 * float(scale)
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def of_rows(timesteps: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Sigma of some rows; one value for all stays."""
    return timesteps if timesteps is None or timesteps.numel() == 1 else timesteps[rows]


__all__ = ["align_left", "is_causal", "sees_padding", "without_padding"]
