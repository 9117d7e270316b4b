"""Texts to score: token ids without padding, and which of them count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edlm_hf.modeling.generation_config_edlm import given_whole_number
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
    numbers = range(len(input_ids)) if numbers is None else numbers_from(numbers, len(input_ids))

    # n rows (L,) each, on the CPU: a text goes to the device with its batch
    rows = [ids_of(row) for row in input_ids]
    real = bools_of("attention_mask", attention_mask, rows)
    given = bools_of("scored", scored, rows)

    # Special tokens do not count unless `scored` says so
    special = torch.tensor(sorted(special_ids(config)), dtype=torch.long, device="cpu")
    all_ids, all_scored = [], []
    for i, row in enumerate(rows):
        # Leave out the padding, on either side
        kept = torch.ones_like(row, dtype=torch.bool) if real is None else real[i]
        ids = row[kept]

        # Which of the other tokens count
        counted = ~torch.isin(ids, special) if given is None else given[i][kept]

        # Every text is checked before a network sees the first one
        check_text(i, ids, counted, config)
        all_ids.append(ids)
        all_scored.append(counted)
    return Texts(all_ids, all_scored, numbers)


def numbers_from(numbers: Sequence[int], num_texts: int) -> list[int]:
    """The numbers of the texts as integers of Python.

    Raises:
        ValueError: they are not one integer of at least 0 for every text.
    """
    if not hasattr(numbers, "__len__") or isinstance(numbers, (str, bytes, dict)):
        raise ValueError(f"The numbers of the texts are {numbers!r}: give one for each of the {num_texts} texts.")
    if len(numbers) != num_texts:
        raise ValueError(f"There are {len(numbers)} numbers for {num_texts} texts: give one for every text.")
    return [given_whole_number("The number of a text", number, 0) for number in numbers]


def ids_of(row) -> torch.LongTensor:
    """The ids of a text as a tensor (L,) on the CPU.

    Raises:
        ValueError: they are not whole numbers, or not in one row.
    """
    try:
        ids = torch.as_tensor(row, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        ids = None

    # An empty list has no type of its own
    if not are_integers(ids) and (ids is None or ids.numel()):
        kind = type(row).__name__ if ids is None else f"{type(row).__name__} of {ids.dtype}"
        raise ValueError(f"input_ids has a text that is a {kind}, but token ids are whole numbers: tokenize it first.")
    if ids.dim() != 1:
        raise ValueError(f"input_ids has texts of shape {tuple(ids.shape)}: give (n, L), or n lists of ids.")
    return ids.long()


def bools_of(name: str, mask, rows: list[torch.LongTensor]) -> list[torch.Tensor] | None:
    """The mask `name` of n rows (L_i,) as bools of the same shapes. None stays None.

    Raises:
        ValueError: it does not have one entry for every token, or entries besides True and False, or 1 and 0.
    """
    if mask is None:
        return None
    try:
        flags = [torch.as_tensor(row, device="cpu") for row in mask]
    except (TypeError, ValueError, RuntimeError):
        kind = type(mask).__name__
        raise ValueError(f"{name} is a {kind} that holds no 0 and 1: give (n, L), or n lists, of them.") from None
    if [row.shape for row in flags] != [row.shape for row in rows]:
        raise ValueError(f"{name} and input_ids differ in shape: give one entry for every token.")

    # NaN is neither
    if not all(((row == 0) | (row == 1)).all() for row in flags):
        raise ValueError(f"{name} has values besides 0 and 1 (False and True): give one of them for every token.")
    return [row.bool() for row in flags]


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
