"""The meaning of token ids: which one is the mask, and which ones no text can hold.

A model has rows for ids that its tokenizer lacks, where the vocabulary was filled up to a multiple
of 64 or has holes. `absent_token_ids` of its configuration names them, as ranges [first, last].
They are never drawn, and every probability is normalised without them.
"""

from collections.abc import Iterable

import torch
from torch import nn

from .network_facts import num_ids, token_ids


def fit_to_tokenizer(model: nn.Module, tokenizer) -> None:
    """Let a model draw the tokens of a tokenizer alone.

    Raises:
        ValueError: they mean different tokens by "mask".
    """
    check_mask_token(tokenizer, model.config, required=False)
    model.config.absent_token_ids = absent_ids(tokenizer, num_ids(model))


def absent_ids(tokenizer, rows: int | None) -> list[list[int]] | None:
    """The ids below `rows` that no token of a tokenizer has, as ranges [first, last], or None."""
    try:
        vocabulary = tokenizer.get_vocab()
    except (AttributeError, NotImplementedError):  # tokenizers of bytes or characters have none
        return None
    if rows is None:
        return None
    known = sorted({token_id for token_id in vocabulary.values() if token_id < rows})
    if not known:
        return None

    # Known ids 0, 1, 4 of 6 rows have the edges -1, 0, 1, 4, 6, and so the gaps [2, 3] and [5, 5].
    ranges = []
    edges = [-1, *known, rows]
    for before, after in zip(edges, edges[1:], strict=False):
        if after - before > 1:
            ranges.append([before + 1, after - 1])
    return ranges or None


def suppress_impossible(logits: torch.Tensor, config) -> torch.Tensor:
    """Make the mask token and the absent ids impossible in logits (..., V), in place."""
    if config.mask_token_id < logits.shape[-1]:
        logits[..., config.mask_token_id] = -torch.inf
    for first, last in getattr(config, "absent_token_ids", None) or ():
        logits[..., first : last + 1] = -torch.inf
    return logits


def not_emitted(
    rows: int,
    mask_token_id: int,
    absent: Iterable[Iterable[int]] | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """(rows,) bool: the mask token and the absent ids, which no denoiser emits."""
    # Ranges with both ends included. They may reach beyond the rows.
    excluded = torch.zeros(rows, dtype=torch.bool, device=device)
    ranges = [(mask_token_id, mask_token_id), *(absent or ())]
    for first, last in ranges:
        excluded[max(first, 0) : last + 1] = True
    return excluded


def highest_emitted(
    rows: int,
    mask_token_id: int,
    absent: Iterable[Iterable[int]] | None = None,
) -> int:
    """The highest id below `rows` that a denoiser emits, -1 if there is none."""
    excluded = not_emitted(rows, mask_token_id, absent)
    emitted = (~excluded).nonzero()
    return int(emitted.max()) if len(emitted) else -1


def check_absent_ids(ranges, vocab_size: int | None) -> None:
    """Raise ValueError unless `absent_token_ids` is a list of ranges inside the vocabulary."""
    for pair in ranges or ():
        in_order = len(pair) == 2 and 0 <= pair[0] <= pair[1]
        if in_order and (vocab_size is None or pair[1] < vocab_size):
            continue

        allowed = "ids from 0 on" if vocab_size is None else f"ids 0 to {vocab_size - 1}"
        raise ValueError(f"absent_token_ids has {pair}, but ranges [first, last] of {allowed} are needed.")


def check_mask_token(tokenizer, config, required: bool = True) -> None:
    """Refuse a tokenizer that means another token by "mask" than a model.

    Args:
        config: the configuration of the model. One without a mask token fits every tokenizer.
        required: refuse a tokenizer without a mask token too (gpt2 has none for mdlm-owt).

    Raises:
        ValueError: `tokenizer.mask_token_id` differs from `config.mask_token_id`, or the tokenizer
            has none.
    """
    of_model = token_ids(config, "mask_token_id")
    of_tokenizer = getattr(tokenizer, "mask_token_id", None)
    if not of_model or (of_tokenizer is None and not required):
        return

    expected = of_model[0]
    if of_tokenizer is None:
        raise ValueError(
            f"The tokenizer has no mask token, but the model masks with id {expected}. Add one "
            "with edlm_hf.tokenization.add_mask_token(tokenizer)."
        )
    if of_tokenizer != expected:
        raise ValueError(
            f"The tokenizer's mask token has id {of_tokenizer}, but the model masks with id "
            f"{expected} (the tokenizer's is {tokenizer.mask_token!r}, the denoiser's is {expected}). "
            "Use the tokenizer the model was trained with; if it is the configuration that is "
            "wrong, set its mask_token_id."
        )


def are_integers(ids) -> bool:
    """Whether `ids` is a tensor of integers. Truth values are none."""
    if not torch.is_tensor(ids):
        return False
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def check_integers(name: str, ids: torch.Tensor) -> None:
    """Raise ValueError unless `ids`, the argument `name`, is a tensor of integers."""
    if not are_integers(ids):
        kind = ids.dtype if torch.is_tensor(ids) else type(ids).__name__
        raise ValueError(f"{name} is of type {kind}, but token ids are a tensor of integers (torch.long).")


def check_token_ids(
    name: str,
    ids: torch.Tensor,
    vocab_size: int | None,
    mask_token_id: int,
) -> None:
    """Raise ValueError unless `ids` is a tensor of ids of the vocabulary, or of the mask token.

    Args:
        name: the argument that the message names.
        vocab_size: None where it is not known.
    """
    check_integers(name, ids)
    if ids.device.type == "meta":
        raise ValueError(f"{name} is on the device `meta`, where tensors hold no values. Make it elsewhere.")
    if ids.numel() == 0:
        return

    # The mask may be the id after the vocabulary
    values = ids.long()  # unsigned types have no min
    least = int(values.min())
    most = int(values.max())
    too_high = vocab_size is not None and most >= max(vocab_size, mask_token_id + 1)
    if least < 0 or too_high:
        last_id = most if vocab_size is None else vocab_size - 1
        raise ValueError(
            f"{name} holds ids from {least} to {most}, but the vocabulary has 0 to {last_id} "
            f"(mask token {mask_token_id}). Use the tokenizer of the model."
        )
