"""What a model and its tokenizer mean by their ids: which token is the mask, and which ids no text can hold.

A model has rows for ids that its tokenizer lacks, where the vocabulary was filled up to a multiple of 64 or has holes.
`absent_token_ids` of its configuration names them, as ranges [first, last]. They are never drawn, and every probability
is normalised without them.
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
    """The ids below `rows` that no token of a tokenizer has, as ranges [first, last]; None if there are none."""
    try:
        known = sorted(i for i in set(tokenizer.get_vocab().values()) if rows is not None and i < rows)
    except (AttributeError, NotImplementedError):  # a tokenizer of bytes or characters keeps no vocabulary
        return None
    edges = [-1, *known, rows]
    ranges = [[low + 1, high - 1] for low, high in zip(edges, edges[1:], strict=False) if high - low > 1]
    return ranges if known and ranges else None


def suppress_impossible(logits: torch.Tensor, config) -> torch.Tensor:
    """Make the mask token and the absent ids of a configuration impossible in logits (..., V), in place."""
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
    excluded = torch.zeros(rows, dtype=torch.bool, device=device)
    for first, last in [(mask_token_id, mask_token_id), *(absent or ())]:
        excluded[max(first, 0) : last + 1] = True
    return excluded


def highest_emitted(rows: int, mask_token_id: int, absent: Iterable[Iterable[int]] | None = None) -> int:
    """The highest id below `rows` that a denoiser emits, -1 if there is none."""
    emitted = (~not_emitted(rows, mask_token_id, absent)).nonzero()
    return int(emitted.max()) if len(emitted) else -1


def check_absent_ids(ranges, vocab_size: int | None) -> None:
    """Raise ValueError unless `absent_token_ids` is a list of ranges inside the vocabulary."""
    for pair in ranges or ():
        inside = len(pair) == 2 and 0 <= pair[0] <= pair[1]
        if not inside or (vocab_size is not None and pair[1] >= vocab_size):
            allowed = "ids from 0 on" if vocab_size is None else f"ids 0 to {vocab_size - 1}"
            raise ValueError(f"absent_token_ids has {pair}, but ranges [first, last] of {allowed} are needed.")


def check_mask_token(tokenizer, config, required: bool = True) -> None:
    """Do nothing if the tokenizer and the model mean the same token by "mask".

    Args:
        config: of the model. required: refuse a tokenizer without a mask token (as that of gpt2 for mdlm-owt).

    Raises:
        ValueError: `tokenizer.mask_token_id` differs from `config.mask_token_id`, or the tokenizer has none.
    """
    own, of_tokenizer = token_ids(config, "mask_token_id"), getattr(tokenizer, "mask_token_id", None)
    if not own or (of_tokenizer is None and not required):
        return
    if of_tokenizer is None:
        raise ValueError(
            f"The tokenizer has no mask token, but the model masks with id {own[0]}. Add one with "
            "edlm_hf.tokenization.add_mask_token(tokenizer)."
        )
    if of_tokenizer != own[0]:
        raise ValueError(
            f"The tokenizer's mask token has id {of_tokenizer}, but the model masks with id {own[0]} (the tokenizer's "
            f"is {tokenizer.mask_token!r}, the denoiser's is {own[0]}). Use the tokenizer the model was trained with; "
            "if it is the configuration that is wrong, set its mask_token_id."
        )


__all__ = ["absent_ids", "check_mask_token", "fit_to_tokenizer", "suppress_impossible"]
