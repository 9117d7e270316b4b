"""Collators: the batches that ours makes, and collators of others that give the same or are refused."""

import numpy as np
import pytest
import torch
from published import tiny_causal, tiny_config, tiny_denoiser
from training import KIND, logged, random_blocks, rows_with_prompts, trainer_of
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    default_data_collator,
)

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import DataCollatorForBlocks


def test_blocks_of_small_integers_become_int64_with_padding_and_labels():
    config = tiny_config(bos_token_id=11, eos_token_id=[10], pad_token_id=9)
    rows = [
        {"input_ids": np.array([11, 3, 4, 10], np.uint8)},
        {"input_ids": [11, 5], "attention_mask": [1, 1]},
    ]
    batch = DataCollatorForBlocks(config)(rows)
    assert batch["input_ids"].tolist() == [[11, 3, 4, 10], [11, 5, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 3, 4, -100], [-100, 5, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert {x.dtype for x in batch.values()} == {torch.int64}


def test_without_special_ids_every_token_is_modelled_and_full_blocks_have_no_attention_mask():
    batch = DataCollatorForBlocks(tiny_config())([{"input_ids": [0, 1, 0]}])
    assert batch["labels"].tolist() == [[0, 1, 0]] and "attention_mask" not in batch


def test_texts_of_a_causal_model_with_a_start_token_begin_with_it():
    collate = DataCollatorForBlocks(tiny_config(causal=True, bos_token_id=11))
    collate([{"input_ids": [11, 1]}])
    with pytest.raises(ValueError, match="begins with token 1.*start token 11"):
        collate([{"input_ids": [11, 1]}, {"input_ids": [1, 2]}])


def test_rows_that_no_text_of_the_model_can_have_are_refused():
    collate = DataCollatorForBlocks(tiny_config(pad_token_id=12))
    collate([{"input_ids": [1, 2]}, {"input_ids": [3]}])  # padding may be the mask token
    for row, message in (
        ([1, 12], "mask token 12"),
        ([1, 13], "ids from 1 to 13"),
        ([-1, 2], "ids from -1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            collate([{"input_ids": row}])


class CompletionOnly:
    """Pads as the collator of TRL does, and makes labels of its `completion_mask`."""

    def __call__(self, rows):
        ids, labels = ([torch.tensor(row["input_ids"]) for row in rows] for _ in range(2))
        for label, row in zip(labels, rows, strict=True):
            label[torch.tensor(row["completion_mask"]) == 0] = -100
        ids, labels, mask = (
            torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=value)
            for x, value in ((ids, 27), (labels, -100), ([torch.ones_like(x) for x in ids], 0))
        )
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def collators(tokenizer):
    return {
        "language modelling": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "padding": DataCollatorWithPadding(tokenizer),
        "default": default_data_collator,
        "sequence to sequence": DataCollatorForSeq2Seq(tokenizer),
        "completion only": CompletionOnly(),
    }


@KIND
@pytest.mark.parametrize("name", list(collators(text8_tokenizer())))
def test_collators_of_others_give_what_ours_gives(tmp_path, kind, name):
    """Rows of equal or unequal length, with or without labels, as each of them can take."""
    sizes = {"vocab_size": 29, "mask_token_id": 28, "pad_token_id": 27}
    tokenizer = text8_tokenizer(12)
    tokenizer.padding_side = "left" if name == "padding" else "right"

    def run(collator):
        model = tiny_causal(**sizes) if kind == "autoregressive" else tiny_denoiser(**sizes)
        if kind == "energy":
            torch.manual_seed(0)
            model = EDLMForMaskedDiffusion.from_components(model, energy_type="nce")

        rows = rows_with_prompts(vocabulary=27)
        if name in ("language modelling", "padding"):
            rows = rows.remove_columns("labels")
        if name == "default":
            rows = random_blocks(16, vocabulary=27)
        if name == "completion only":
            masks = [[int(label != -100) for label in labels] for labels in rows["labels"]]
            rows = rows.remove_columns("labels").add_column("completion_mask", masks)

        trainer = trainer_of(kind, tmp_path, rows, rows, model, {"data_collator": collator}, max_steps=3)
        trainer.train()
        return logged(trainer), trainer.evaluate()["eval_loss"]

    (ours, measured), (theirs, found) = run(None), run(collators(tokenizer)[name])
    assert theirs == pytest.approx(ours, abs=1e-6) and 0.1 < min(ours)
    assert found == pytest.approx(measured, abs=1e-6)


class Masking:
    """Masks tokens and says so nowhere."""

    def __call__(self, rows):
        ids = torch.tensor(np.stack([row["input_ids"] for row in rows]))
        return {"input_ids": ids.index_fill(1, torch.tensor([2]), 12), "labels": ids}


class Replacing(Masking):
    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == 12, 3)}


@KIND
@pytest.mark.parametrize(
    "collator, message",
    [
        (DataCollatorForLanguageModeling(text8_tokenizer()), "DataCollatorForLanguageModeling with mlm=True"),
        (DataCollatorWithFlattening(), "several texts in a row would see each other"),
        (Masking(), "mask token 12|label of token 2 of a row"),
        (Replacing(), "label of token 2 of a row is .*, but the token is 3"),
        (lambda rows: {"labels": torch.zeros(1, 2)}, "The collator gives labels, but a batch needs input_ids"),
        (lambda rows: [row["input_ids"] for row in rows], "The collator gives list, but a batch needs input_ids"),
        (
            lambda rows: {"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(1, 3).long()},
            "1 rows of labels for 2 of input_ids",
        ),
    ],
)
def test_collators_whose_batches_mean_something_else_are_refused(tmp_path, kind, collator, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(kind, tmp_path, random_blocks(8), given={"data_collator": collator}).train()
