"""Blocks of tokens to batches. No noise is drawn here: data loaders work ahead, and a resumed run would differ."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedConfig

from edlm_hf.modeling.network_facts import special_ids


class DataCollatorForBlocks:
    """Rows with `input_ids` (L,) of any integer type, and perhaps an `attention_mask`, to int64 tensors (B, L).

    `labels` are the tokens that are modelled, and -100 at the others: padding, and tokens that are the `bos_token_id`,
    `eos_token_id` or `pad_token_id` of the model's configuration. Those are never masked and never counted, as in
    evaluation: a start token is context. A configuration without these ids models every token, as published models of
    OpenWebText do.

    Shorter rows are padded on the right. The batch has an `attention_mask` only where there is padding.

    Raises:
        ValueError: the model is causal with a start token, and a row does not begin with it; a row holds the mask
            token of a denoiser, or ids outside the vocabulary.
    """

    def __init__(self, config: PreTrainedConfig, num_ids: int | None = None):
        """`num_ids`: ids that the model has an embedding of, where these are more than its vocabulary."""
        self.special = sorted(special_ids(config))
        causal = getattr(config, "causal", False)
        self.start = config.bos_token_id if causal else None
        self.mask_token_id = None if causal else getattr(config, "mask_token_id", None)
        self.num_ids = num_ids or getattr(config, "vocab_size", None)
        self.pad_token_id = getattr(config, "pad_token_id", None) or 0

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        ids = np.full((len(rows), max(lengths)), self.pad_token_id, np.int64)
        real = np.zeros(ids.shape, bool)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, :length] = row["input_ids"]
            real[i, :length] = row.get("attention_mask", True)
        if self.start is not None and (ids[:, 0] != self.start).any():
            raise ValueError(
                f"A row begins with token {ids[ids[:, 0] != self.start][0, 0]}, but texts of this model begin with its "
                f"start token {self.start}. Make the blocks with start_token=True, or set config.bos_token_id=None."
            )
        if self.mask_token_id is not None and (real & (ids == self.mask_token_id)).any():
            raise ValueError(
                f"A row holds the mask token {self.mask_token_id}, which texts to learn from do not have. Tokenize "
                "them with the tokenizer of the model, and let training do the masking."
            )
        least, most = (ids[real].min(), ids[real].max()) if real.any() else (0, 0)
        if least < 0 or (self.num_ids is not None and most >= self.num_ids):
            allowed = "ids from 0 on" if self.num_ids is None else f"0 to {self.num_ids - 1}"
            raise ValueError(
                f"Rows hold ids from {least} to {most}, but the model has {allowed}. Tokenize them with the tokenizer "
                "of the model."
            )
        labels = np.where(real & ~np.isin(ids, self.special), ids, -100)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if not real.all():
            batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        return batch


__all__ = ["DataCollatorForBlocks"]
