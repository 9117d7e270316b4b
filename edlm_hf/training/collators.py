"""Batches from rows of tokens.

No noise is drawn here: data loaders work ahead of the training, and a resumed run would differ.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedConfig

from edlm_hf.modeling.network_facts import longest_text, special_ids

CONTEXT_LABEL = -100  # of tokens that are not predicted

# Columns of a row besides `input_ids`, with one entry per token. 0 in a counting mask: context.
COUNTING_MASKS = ("completion_mask", "assistant_masks", "loss_mask")
MASKS = ("attention_mask", *COUNTING_MASKS, "special_tokens_mask")
ROW_COLUMNS = (*MASKS, "labels", "position_ids")


class DataCollatorForBlocks:
    """Rows with `input_ids` (L,) of any integer type to int64 tensors (B, L).

    `labels` of the batch are the tokens that are modelled, and -100 at the others, which are
    context: never masked and never counted. Context are

    - padding (`attention_mask` 0, on either side), which is left out: rows begin at the left and
      are padded on the right. The batch has an `attention_mask` only where there is padding.
    - tokens that are the `bos_token_id`, `eos_token_id` or `pad_token_id` of the model's
      configuration, as in evaluation. A configuration without these ids models every token, as
      published models of OpenWebText do.
    - tokens whose `labels` in the row are -100 (at all others the label is the token itself).
    - tokens with 0 in a `completion_mask`, `assistant_masks` or `loss_mask`, or 1 in a
      `special_tokens_mask`.

    Args:
        config: the model's.
        num_ids: ids that the model has an embedding of, where these are more than its vocabulary.
        collator: another collator, whose batches are read as rows.

    Raises:
        ValueError: the model is causal with a start token, and a row does not begin with it. A row
            holds the mask token of a denoiser, ids outside the vocabulary or more tokens than the
            model takes. A label is another token, or a column has another length than `input_ids`.
            A row holds several texts (`position_ids` that begin anew) or none.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        num_ids: int | None = None,
        collator: Callable | None = None,
    ):
        # A causal model needs its start token in front, a denoiser texts without masks
        is_causal = getattr(config, "causal", False)
        self.special = sorted(special_ids(config))
        self.start = config.bos_token_id if is_causal else None
        self.mask_token_id = None if is_causal else getattr(config, "mask_token_id", None)

        # Without a padding token any id does: the attention mask hides it
        self.pad_token_id = getattr(config, "pad_token_id", None) or 0
        self.num_ids = num_ids or getattr(config, "vocab_size", None)
        self.longest = longest_text(config)
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        if self.collator is not None:
            rows = rows_of(self.collator(rows))
        texts = [read_row(row) for row in rows]
        width = max(len(row["input_ids"]) for row in rows)

        # (B, L), padded on the right
        ids = np.full((len(rows), width), self.pad_token_id, np.int64)
        present = np.zeros(ids.shape, bool)
        counted = np.zeros(ids.shape, bool)
        for i, (tokens, counts) in enumerate(texts):
            ids[i, : len(tokens)] = tokens
            present[i, : len(tokens)] = True
            counted[i, : len(tokens)] = counts
        self.check(ids, present)

        # Special tokens are context, whatever the columns of the row say
        is_special = np.isin(ids, self.special)
        modelled = counted & ~is_special
        labels = np.where(modelled, ids, CONTEXT_LABEL)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
        }

        # A batch without padding takes the faster attention without a mask
        if not present.all():
            mask = present.astype(np.int64)
            batch["attention_mask"] = torch.from_numpy(mask)
        return batch

    def check(self, ids: np.ndarray, present: np.ndarray) -> None:
        """Raise ValueError for tokens that no text of the model can have.

        Args:
            ids: (B, L).
            present: (B, L) bool, False where there is padding.
        """
        # Without the start token the first token of a text would have no probability
        if self.start is not None and (ids[:, 0] != self.start).any():
            other = ids[ids[:, 0] != self.start][0, 0]
            raise ValueError(
                f"A row begins with token {other}, but texts of this model begin with its start "
                f"token {self.start}. Make the blocks with start_token=True, or set "
                "config.bos_token_id=None."
            )

        if self.mask_token_id is not None and (present & (ids == self.mask_token_id)).any():
            raise ValueError(
                f"A row holds the mask token {self.mask_token_id}, which texts to learn from do "
                "not have. Tokenize them with the tokenizer of the model, and let the trainer do "
                "the masking: no collator may."
            )

        longest = present.sum(-1).max()
        if self.longest is not None and longest > self.longest:
            raise ValueError(
                f"A row has {longest} tokens, but the model takes at most {self.longest}. Cut the "
                "texts (edlm_hf.data.to_blocks)."
            )

        # The padding may be an id outside the vocabulary
        least = ids[present].min()
        most = ids[present].max()
        if least < 0 or (self.num_ids is not None and most >= self.num_ids):
            allowed = "ids from 0 on" if self.num_ids is None else f"0 to {self.num_ids - 1}"
            raise ValueError(
                f"Rows hold ids from {least} to {most}, but the model has {allowed}. Tokenize them "
                "with the tokenizer of the model."
            )


def read_row(row: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Read the tokens of a row without its padding, and which of them count.

    Returns:
        (n,) integers and (n,) bool.
    """
    # 1. The columns, (L,) each
    ids = read_ids(row)
    columns = {}
    for name in ROW_COLUMNS:
        if row.get(name) is not None:
            columns[name] = read_column(row, name, len(ids))

    present = columns.get("attention_mask", np.ones(len(ids), bool))
    if not present.any():
        advice = "Leave out rows without a text."
        raise ValueError(f"A row of {len(ids)} tokens has nothing but padding. {advice}")

    # 2. Which tokens count
    counts = np.ones(len(ids), bool)
    for name in COUNTING_MASKS:
        counts &= columns.get(name, True)
    is_special = columns.get("special_tokens_mask", np.zeros(len(ids), bool))
    counts &= ~is_special
    if "labels" in columns:
        counts &= read_labels(columns["labels"], ids, present)

    # 3. One text, whose positions are 0, 1, 2, ...
    if "position_ids" in columns:
        positions = columns["position_ids"][present]
        if (positions != np.arange(len(positions))).any():
            raise ValueError(
                "position_ids of a row begin anew or leave some out: several texts in a row would "
                "see each other. Give one text per row (packing=False, padding_free=False)."
            )
    return ids[present], counts[present]


def read_ids(row: Mapping) -> np.ndarray:
    """The `input_ids` of a row, (L,) integers."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        names = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        advice = "Tokenize the texts first (edlm_hf.data.to_blocks, or a tokenizer)."
        raise ValueError(f"A row has no input_ids, but {names}. {advice}")

    # An empty list becomes an array of floats
    ids = np.asarray(row["input_ids"])
    has_integers = ids.size == 0 or ids.dtype.kind in "iu"
    if ids.ndim != 1 or not has_integers:
        raise ValueError(
            f"input_ids of a row are of shape {ids.shape} and type {ids.dtype}, but they must be "
            "integers (L,): one text per row. Tokenize without return_tensors."
        )
    return ids


def read_column(row: Mapping, name: str, length: int) -> np.ndarray:
    """A column of a row with one entry per token, (L,). Masks are bool."""
    column = np.asarray(row[name])
    if column.shape != (length,):
        raise ValueError(
            f"{name} of a row has the shape {column.shape}, but its input_ids are {length} tokens: "
            "give one entry for every token, or remove the column."
        )
    if name not in MASKS:
        return column

    # Numbers of texts (1, 1, 2, 2) and weights of tokens (0.5) are not masks
    is_flag = np.isin(column, (0, 1))
    if not is_flag.all():
        raise ValueError(
            f"{name} of a row holds {column[~is_flag][0]}, but it must be 0 or 1 for every token: "
            "there are no weights, and one text per row."
        )
    return column.astype(bool)


def read_labels(labels: np.ndarray, ids: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Which tokens the labels of a row make count, (L,) bool."""
    # Labels of padding do not matter
    counts = labels != CONTEXT_LABEL
    wrong = present & counts & (labels != ids)
    if wrong.any():
        position = int(wrong.argmax())
        raise ValueError(
            f"The label of token {position} of a row is {labels[position]}, but the token is "
            f"{ids[position]}. Labels say what is learnt: the token itself, or -100 where it is "
            "context. The trainer masks and shifts, no row and no collator may (of "
            "DataCollatorForLanguageModeling, take mlm=False)."
        )
    return counts


def rows_of(batch) -> list[dict]:
    """The rows of a batch that another collator has made."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        names = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"The collator gives {names}, but a batch needs input_ids as a tensor (B, L). Take "
            "another data_collator, or none: the trainer's own pads rows and reads their labels."
        )

    # Columns (B, L) that rows may have. Others mean nothing here.
    columns = {name: batch[name] for name in ROW_COLUMNS if batch.get(name) is not None}
    for name, column in columns.items():
        if len(column) != len(ids):
            counts = f"{len(column)} rows of {name} for {len(ids)} of input_ids"
            raise ValueError(f"The collator gives {counts}.")

    # Row by row, (L,) each
    columns = {"input_ids": ids} | columns
    rows = []
    for i in range(len(ids)):
        rows.append({name: column[i] for name, column in columns.items()})
    return rows


__all__ = ["DataCollatorForBlocks"]
