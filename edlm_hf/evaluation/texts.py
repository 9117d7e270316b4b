"""Texts to score: token ids without padding, and which of them count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edlm_hf.modeling.network_facts import longest_text, special_ids, vocabulary_size
from edlm_hf.modeling.vocabulary import are_integers


@dataclass(frozen=True)
class Texts:
    """Token ids of n texts without padding. Tokens that do not count stay visible as context.

    Args:
        ids: n tensors (L_i,).
        scored: n bool tensors (L_i,), the tokens that count, at least one of every text.
        numbers: n integers. The noise of a text is a function of its number.
    """

    ids: list[torch.LongTensor]
    scored: list[torch.Tensor]
    numbers: Sequence[int]

    @property
    def counts(self) -> torch.Tensor:
        """How many tokens of every text count, (n,) float64."""
        counts = [int(scored.sum()) for scored in self.scored]
        return torch.tensor(counts, dtype=torch.float64, device="cpu")


def read_texts(
    config,
    input_ids: torch.Tensor | Sequence[Sequence[int]],
    attention_mask: torch.Tensor | None = None,
    scored: torch.Tensor | Sequence[Sequence[bool]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Texts:
    """Read the texts of a batch (n, L), or of n lists.

    Args:
        config: of the model. Its mask token must not occur in a text.
        attention_mask: (n, L), 0 at padding on either side.
        scored: (n, L) bool, the tokens that count. Unless given, all count but padding and the
            start, end and padding tokens of `config`.
        numbers: of the texts, 0, 1, ... unless given.

    Raises:
        ValueError: there are no texts, no token of a text counts, a text is too long, has an id
            outside the vocabulary or holds the mask token, or shapes do not fit.
    """
    if not hasattr(input_ids, "__len__") or isinstance(input_ids, (str, bytes, dict)):
        raise ValueError(f"input_ids is a {type(input_ids).__name__}, but texts (n, L), or n lists of ids, are needed.")
    if len(input_ids) == 0:
        raise ValueError("There are no texts: input_ids is empty. Give at least one.")
    numbers = range(len(input_ids)) if numbers is None else numbers
    if len(numbers) != len(input_ids):
        raise ValueError(f"There are {len(numbers)} numbers for {len(input_ids)} texts: give one for every text.")
    check_same_shape("attention_mask", attention_mask, input_ids)
    check_same_shape("scored", scored, input_ids)

    # Special tokens do not count unless `scored` says so
    special = torch.tensor(sorted(special_ids(config)), dtype=torch.long, device="cpu")
    all_ids, all_scored = [], []
    for i, row in enumerate(input_ids):
        # (L,), on the CPU: a text goes to the device with its batch
        row = ids_of(row)
        if row.dim() != 1:
            raise ValueError(f"input_ids has texts of shape {tuple(row.shape)}: give (n, L), or n lists of ids.")

        # Leave out the padding, on either side
        real = torch.ones_like(row, dtype=torch.bool)
        if attention_mask is not None:
            real = torch.as_tensor(attention_mask[i], device="cpu").bool()
        ids = row[real]

        # Which of the other tokens count
        if scored is None:
            counted = ~torch.isin(ids, special)
        else:
            counted = torch.as_tensor(scored[i], device="cpu").bool()[real]

        # Every text is checked before a network sees the first one
        check_text(i, ids, counted, config)
        all_ids.append(ids)
        all_scored.append(counted)
    return Texts(all_ids, all_scored, numbers)


def ids_of(row) -> torch.LongTensor:
    """The ids of a text as a tensor on the CPU.

    Raises:
        ValueError: they are not whole numbers.
    """
    try:
        ids = torch.as_tensor(row, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        ids = None

    # An empty list has no type of its own
    if not are_integers(ids) and (ids is None or ids.numel()):
        kind = type(row).__name__ if ids is None else f"{type(row).__name__} of {ids.dtype}"
        raise ValueError(f"input_ids has a text that is a {kind}, but token ids are whole numbers: tokenize it first.")
    return ids.long()


def check_same_shape(name: str, mask, input_ids) -> None:
    """Raise ValueError unless a mask is None or has one entry for every token."""
    if mask is None:
        return
    lengths = [len(row) for row in mask]
    if lengths != [len(row) for row in input_ids]:
        raise ValueError(f"{name} and input_ids differ in shape: give one entry for every token.")


def check_text(i: int, ids: torch.Tensor, scored: torch.Tensor, config) -> None:
    """Raise ValueError unless the model can score text number i: ids (L,), scored (L,) bool."""
    if not scored.any():
        raise ValueError(
            f"Text {i} has {len(ids)} tokens of which none counts (padding and special tokens never do). Leave it out."
        )

    mask_token_id = getattr(config, "mask_token_id", None)
    if mask_token_id is not None and (ids == mask_token_id).any():
        raise ValueError(f"Text {i} holds the mask token ({mask_token_id}); a text to score is complete.")

    # The mask may be the id after the vocabulary
    # The mask may lie behind the vocabulary
    vocab_size = vocabulary_size(config)
    if vocab_size is not None:
        end = max(vocab_size, (mask_token_id or 0) + 1)
        if ids.min() < 0 or ids.max() >= end:
            raise ValueError(
                f"Text {i} has ids from {ids.min()} to {ids.max()}, but the model knows 0 to {vocab_size - 1}."
            )

    longest = longest_text(config)
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"Text {i} has {len(ids)} tokens, but the model takes at most {longest}. Cut it with "
            "edlm_hf.data.document_windows, which says for every window which tokens count."
        )
