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
from .mdlm_pretrained import MDLMPreTrainedModel
from .network_facts import accepts, device_of, vocabulary_size, without_adapters

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

# Slopes below this share of the largest one are rounding.
SMALLEST_SLOPE = 1e-6

# (ids (B, L), attention mask (B, L) or None, sigma (B,), more inputs by name) -> logits (B, L, V)
Logits = Callable[..., torch.Tensor]

# Network -> the sizes (bit lengths) of the widths at which padding had no effect, None if it had
# one
_clean_widths: WeakKeyDictionary[nn.Module, set[int] | None] = WeakKeyDictionary()
_lock = Lock()


def is_causal(model: nn.Module) -> bool:
    """Whether a later token leaves the logits before it as they are.

    A model of which that cannot be found out counts as causal.
    """
    return not sees_later_tokens(model)


def sees_later_tokens(model: nn.Module) -> bool | None:
    """Whether the logits at a position depend on later tokens.

    Returns:
        None where a trial cannot tell: the model does not take a text of three tokens, or its
        logits depend on no token at all, as in a new network whose head is zero.
    """
    # 1. Some models say it, and others cannot be tried.
    model = without_adapters(model)
    device = device_of(model)
    if not isinstance(model, PreTrainedModel) or device.type == "meta":
        return None
    if isinstance(model, MDLMPreTrainedModel) or model.config.is_encoder_decoder:
        return not getattr(model.config, "causal", False)

    # 2. Slopes are exactly 0 behind a causal mask, however small the effect of a token is.
    slopes = probe(model, lambda: slopes_of_first_logits(model, device), device)
    if slopes is not None:
        own, later = slopes
        if own > 0:
            return later > SMALLEST_SLOPE * own

    # 3. Without slopes, a difference beyond rounding says something. So does no difference at all,
    #    if the logits depend on their own token.
    logits = probe(model, lambda: first_logits_of_three_texts(model, device), device)
    if logits is None:
        return None
    text, other_later, other_own = logits
    if not equal_up_to_rounding(text, other_later):
        return True
    if torch.equal(text, other_later) and not equal_up_to_rounding(text, other_own):
        return False
    return None


def slopes_of_first_logits(model: PreTrainedModel, device: torch.device) -> tuple[float, float]:
    """The largest |d l / d e| of the token at position 0 and of the tokens after it.

    Here l is the logits (V,) at position 0, weighted at random and summed, and e are the
    embeddings (1, 3, H).
    """
    token, _ = ordinary_tokens(model)
    ids = torch.full((1, 3), token, device=device)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()

    with torch.enable_grad():
        # A copy, because some models write into what they are given
        output = model(
            inputs_embeds=embeddings.clone(),
            attention_mask=torch.ones_like(ids),
            return_dict=True,
            **time_of_probe(model, device),
        )
        logits = output.logits[0, 0].float()  # (V,)

        # Random weights, since slopes of equal ones may cancel
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(len(logits), generator=generator, device="cpu")
        weighted_sum = logits @ weights.to(device)
        (slopes,) = torch.autograd.grad(weighted_sum, embeddings)

    largest = slopes[0].abs().amax(-1).tolist()  # (L,)
    return largest[0], max(largest[1:])


def first_logits_of_three_texts(model: PreTrainedModel, device: torch.device) -> torch.Tensor:
    """The logits (3, V) at position 0 of a text of three tokens, and of two others.

    One differs in the last token, one in the first.
    """
    token, other = ordinary_tokens(model)
    ids = torch.full((3, 3), token, device=device)
    ids[1, -1] = other
    ids[2, 0] = other
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        return_dict=True,
        **time_of_probe(model, device),
    )
    return output.logits[:, 0]


def ordinary_tokens(model: PreTrainedModel) -> tuple[int, int]:
    """Two ids from the middle of the vocabulary: a network may take its first ones for padding."""
    middle = (vocabulary_size(model.config) or 2) // 2
    return middle, middle - 1


def time_of_probe(model: nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """The total noise sigma for a network that takes it, by name."""
    if not accepts(model, "timesteps"):
        return {}
    return {"timesteps": torch.ones(1, dtype=torch.float32, device=device)}


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
    lengths = attention_mask.sum(-1)  # (B,)
    different_lengths = sorted(set(lengths.tolist()) - {0})

    logits = None
    for length in different_lengths:
        # The rows of this length, (r, length), without a mask
        rows = (lengths == length).nonzero()[:, 0]
        ids = input_ids[rows, :length]
        sigma = timesteps_of_rows(timesteps, rows)
        of_rows = {name: x[rows, :length] for name, x in inputs.items()}
        of_length = logits_of(ids, None, sigma, **of_rows)

        # V is known after the first call
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
    # eps^(3/4), relative to the largest finite value
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
