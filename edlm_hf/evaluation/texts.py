"""Texts to score: token ids without padding, and which tokens count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edlm_hf.modeling.network_facts import longest_text, special_ids, vocabulary_size


@dataclass(frozen=True)
class Texts:
    """Token ids of n texts without their padding, and which tokens count; the others stay visible as context.

    Args:
        ids: n tensors (L_i,). scored: n bool tensors (L_i,), each with at least one token.
        numbers: n integers by which the noise of the texts is drawn.
    """

    ids: list[torch.LongTensor]
    scored: list[torch.Tensor]
    numbers: Sequence[int]

    @property
    def counts(self) -> torch.Tensor:
        """Tokens that count, (n,) float64."""
        return torch.tensor([int(scored.sum()) for scored in self.scored], dtype=torch.float64, device="cpu")


def read_texts(
    config,
    input_ids: torch.Tensor | Sequence[Sequence[int]],
    attention_mask: torch.Tensor | None = None,
    scored: torch.Tensor | Sequence[Sequence[bool]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Texts:
    """The texts of a batch (n, L) or of n lists.

    Args:
        config: of the model; its mask token may not occur, its start, end and padding tokens do not count.
        attention_mask: (n, L), 0 at padding on either side. scored: bool, the tokens that count, in place of all that
            are neither padding nor special. numbers: of the texts, 0, 1, ... unless given.

    Raises:
        ValueError: no texts, a text of which no token counts or that is too long, an id outside the vocabulary, the
            mask token in a text, or shapes that do not fit.
    """
    if len(input_ids) == 0:
        raise ValueError("There are no texts: input_ids is empty. Give at least one.")
    numbers = range(len(input_ids)) if numbers is None else numbers
    if len(numbers) != len(input_ids):
        raise ValueError(f"There are {len(numbers)} numbers for {len(input_ids)} texts: give one for every text.")
    masks = {"attention_mask": attention_mask, "scored": scored}
    for name, mask in masks.items():
        if mask is not None and [len(row) for row in mask] != [len(row) for row in input_ids]:
            raise ValueError(f"{name} and input_ids differ in shape: give one entry for every token.")
    mask_token_id = getattr(config, "mask_token_id", None)
    special = torch.tensor(sorted(special_ids(config)), dtype=torch.long, device="cpu")
    ids, counted = [], []
    for i, row in enumerate(input_ids):
        row = torch.as_tensor(row, device="cpu").long()
        if row.dim() != 1:
            raise ValueError(f"input_ids has texts of shape {tuple(row.shape)}: give (n, L), or n lists of ids.")
        real = torch.ones_like(row, dtype=torch.bool)
        if attention_mask is not None:
            real = torch.as_tensor(attention_mask[i], device="cpu").bool()
        row, keep = row[real], ~torch.isin(row[real], special)
        if scored is not None:
            keep = torch.as_tensor(scored[i], device="cpu").bool()[real]
        check_text(i, row, keep, config, mask_token_id)
        ids.append(row)
        counted.append(keep)
    return Texts(ids, counted, numbers)


def check_text(i: int, ids: torch.Tensor, scored: torch.Tensor, config, mask_token_id: int | None) -> None:
    vocab_size, limit = vocabulary_size(config), longest_text(config)
    if not scored.any():
        raise ValueError(
            f"Text {i} has {len(ids)} tokens of which none counts (padding and special tokens never do). Leave it out."
        )
    if mask_token_id is not None and (ids == mask_token_id).any():
        raise ValueError(f"Text {i} holds the mask token ({mask_token_id}); a text to score is complete.")
    if vocab_size is not None and (ids.min() < 0 or ids.max() >= max(vocab_size, (mask_token_id or 0) + 1)):
        raise ValueError(
            f"Text {i} has ids from {ids.min()} to {ids.max()}, but the model knows 0 to {vocab_size - 1}."
        )
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"Text {i} has {len(ids)} tokens, but the model takes at most {limit}. Cut it with "
            "edlm_hf.data.document_windows, which says for every window which tokens count."
        )
