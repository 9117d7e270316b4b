"""Facts about a network that only a trial can tell: is it causal, does padding change its logits?

Probes run in eval mode, leave the network and the global random numbers as they are, and decide
nothing where the network does not accept their input. Shapes: B rows, L positions, V vocabulary.
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

# Model types in which padding takes part though it is masked: tokens are mixed without a mask,
# convolved, pooled or hashed in blocks. A probe in half precision may miss the smaller effects.
SEE_PADDING = {
    "convbert",
    "fnet",
    "funnel",
    "mobilebert",
    "mra",
    "nystromformer",
    "reformer",
    "yoso",
}

# (ids (B, L), attention mask (B, L) or None, sigma (B,), more inputs by name) -> logits (B, L, V)
Logits = Callable[..., torch.Tensor]

# Network -> the sizes (bit lengths) of the widths at which padding had no effect, None if it had
# one
_clean_widths: WeakKeyDictionary[nn.Module, set[int] | None] = WeakKeyDictionary()
_lock = Lock()


def is_causal(model: nn.Module) -> bool:
    """Whether a later token leaves the logits before it as they are.

    A model that cannot be tried counts as causal.
    """
    device = device_of(model)
    if not isinstance(model, PreTrainedModel) or device.type == "meta":
        return True
    if isinstance(model, MDLMPreTrainedModel) or model.config.is_encoder_decoder:
        return getattr(model.config, "causal", False)

    # Two rows (2, 3) that differ in the last token alone
    ids = torch.zeros(2, 3, dtype=torch.long, device=device)
    ids[1, -1] = 1

    def first_logits() -> torch.Tensor:
        attention_mask = torch.ones_like(ids)
        output = model(input_ids=ids, attention_mask=attention_mask, return_dict=True)
        return output.logits[:, 0]

    logits = probe(model, first_logits, ids.device)
    return logits is None or equal_up_to_rounding(logits[0], logits[1])


def sees_padding(
    network: nn.Module,
    logits_of: Logits,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    timesteps: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> bool:
    """Whether padding changes the logits of the text before it, tried with the shortest row.

    Some networks mix only long texts: every doubling of the width is tried once, until an effect is
    found. The result is remembered as long as the network lives, and never saved.

    Args:
        network: the denoiser.
        logits_of: how it is called.
        input_ids, attention_mask: (B, L), aligned left, with some padding.
        timesteps: (B,) or one for all.
        inputs: (B, L), further inputs that go with the ids.
    """
    if isinstance(network, MDLMPreTrainedModel):
        return False
    if is_known_to_see_padding(network):
        return True

    # 1. Was this network tried at this width?
    width = attention_mask.shape[1]
    size = width.bit_length()
    with _lock:
        clean_sizes = _clean_widths.get(network, set())
    if clean_sizes is None:
        return True
    if size in clean_sizes:
        return False

    # 2. The shortest row that has both text and padding
    length = shortest_text(attention_mask)
    if length == width:
        return False
    row = (attention_mask.sum(-1) == length).nonzero()[0]  # (1,)
    ids = input_ids[row]
    real = attention_mask[row]
    sigma = timesteps_of_rows(timesteps, row)
    of_row = {name: x[row] for name, x in inputs.items()}
    of_text = {name: x[:, :length] for name, x in of_row.items()}

    # 3. Its logits alone, and with its padding: as it is, and with two other ids in it
    fillers = [ids, torch.zeros_like(ids), torch.ones_like(ids)]
    padded_rows = [torch.where(real == 0, filler, ids) for filler in fillers]

    def alone_and_padded() -> list[torch.Tensor]:
        logits = [logits_of(ids[:, :length], None, sigma, **of_text)]
        for padded in padded_rows:
            beside_padding = logits_of(padded, real, sigma, **of_row)
            logits.append(beside_padding[:, :length])
        return logits

    logits = probe(network, alone_and_padded, input_ids.device)
    if logits is None:
        return False
    alone, *padded = logits
    has_effect = not all(equal_up_to_rounding(alone, other) for other in padded)

    # 4. Remember it
    with _lock:
        _clean_widths[network] = None if has_effect else clean_sizes | {size}
    return has_effect


def is_known_to_see_padding(network: nn.Module) -> bool:
    """Whether a network is of a type in which padding takes part."""
    config = getattr(network, "config", None)
    if getattr(config, "model_type", None) in SEE_PADDING:
        return True
    return getattr(config, "attention_type", None) == "block_sparse"  # BigBird in long texts


def without_padding(
    logits_of: Logits,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    timesteps: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Logits (B, L, V) of rows aligned left that run without their padding, 0 at padding.

    Rows of one length run together. Further `inputs` (B, L), as token types, are cut with the ids.
    """
    lengths = attention_mask.sum(-1)
    logits = None
    for length in sorted(set(lengths.tolist()) - {0}):
        rows = (lengths == length).nonzero()[:, 0]
        sigma = timesteps_of_rows(timesteps, rows)
        of_rows = {name: x[rows, :length] for name, x in inputs.items()}
        of_length = logits_of(input_ids[rows, :length], None, sigma, **of_rows)

        if logits is None:
            logits = of_length.new_zeros(*input_ids.shape, of_length.shape[-1])
        logits[rows, :length] = of_length

    return logits


def shortest_text(attention_mask: torch.Tensor) -> int:
    """Tokens of the shortest row that has any, the width if no row has."""
    lengths = attention_mask.sum(-1)
    width = attention_mask.shape[1]
    return int(lengths.masked_fill(lengths == 0, width).min())


def align_left(attention_mask: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
    """The column order (B, L) that puts the text of every row first, and the mask in that order."""
    order = (attention_mask == 0).long().argsort(dim=-1, stable=True)
    return order, attention_mask.gather(1, order)


def probe(network: nn.Module, compute: Callable, device: torch.device):
    """Run `compute`, which calls the network, in eval mode and without a trace.

    Returns:
        The result of `compute`, None if the network raises anything.
    """
    devices = [device] if device.type == "cuda" else []
    with evaluating(network), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            return compute()
        except Exception:  # a network of others may raise anything: it does not take such an input
            return None


def equal_up_to_rounding(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results of the same shape differ by no more than rounding."""
    scale = one.nan_to_num(posinf=0, neginf=0).abs().max().clamp_min(1)
    tolerance = torch.finfo(one.dtype).eps ** 0.75 * float(scale)
    if one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def timesteps_of_rows(timesteps: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Sigma of some rows. One value for all rows stays as it is."""
    if timesteps is None or timesteps.numel() == 1:
        return timesteps
    return timesteps[rows]
