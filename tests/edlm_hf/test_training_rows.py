"""Rows as users bring them: labels and masks, padding, collators of others; and what does not depend on the division
of rows into batches: noise, losses, gradients, evaluation."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from published import tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from torch.nn.functional import cross_entropy
from training import blocks, logged, mean_and_error, random_blocks, rows_with_prompts, trainer_of
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    default_data_collator,
)

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, nelbo, sampler_bound
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import DataCollatorForBlocks
from edlm_hf.training.row_noise import row_uniforms

KINDS = ["denoiser", "autoregressive", "energy"]
KIND = pytest.mark.parametrize("kind", KINDS)
KIND_OR_DRAFTS = pytest.mark.parametrize("kind", [*KINDS, "drafts"])


def batch_of(*rows, **changes) -> dict[str, torch.Tensor]:
    return DataCollatorForBlocks(tiny_config(**changes))(rows)


def scored(rows) -> list[list[bool]]:
    return [[label != -100 for label in row["labels"]] for row in rows]


# --------------------------------------------------------------------------------------------------------------- labels


def test_tokens_with_the_label_minus_100_are_context():
    batch = batch_of({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}, {"input_ids": [5, 6]})
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4], [5, 6, -100, -100]]


def test_labels_only_take_away():
    row = {"input_ids": [11, 1, 2, 10], "labels": [11, -100, 2, 10]}
    assert batch_of(row, bos_token_id=11, eos_token_id=10)["labels"].tolist() == [[-100, -100, 2, -100]]


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_what_counts_are_read_as_labels_are(name):
    row = {"input_ids": [1, 2, 3, 4], name: [0, 0, 1, 1]}
    assert batch_of(row)["labels"].tolist() == [[-100, -100, 3, 4]]
    assert batch_of(row | {"labels": [-100, 2, -100, 4]})["labels"].tolist() == [[-100, -100, -100, 4]]


def test_a_mask_of_special_tokens_is_read():
    row = {"input_ids": [7, 2, 3, 8], "special_tokens_mask": [1, 0, 0, 1]}
    assert batch_of(row)["labels"].tolist() == [[-100, 2, 3, -100]]


def test_columns_that_a_row_has_not_are_none():
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4]}])
    assert batch_of(*rows)["labels"].tolist() == [[-100, 2], [3, 4]]


@pytest.mark.parametrize("padding", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
def test_padding_on_either_side_is_left_out(padding):
    ids, labels = np.full(5, 9), np.full(5, 9)
    real = np.array(padding, bool)
    ids[real], labels[real] = [1, 2, 3], [-100, 2, 3]
    batch = batch_of({"input_ids": ids, "attention_mask": padding, "labels": labels})
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"input_ids": [1, 2, 3], "labels": [1, 2]}, r"labels of a row has the shape \(2,\), but its input_ids are 3"),
        ({"input_ids": [1, 2], "labels": 1}, r"labels of a row has the shape \(\)"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 3, -100]}, "label of token 1 of a row is 3, but the token is 2"),
        ({"input_ids": [1, 2], "completion_mask": [0]}, "completion_mask of a row has the shape"),
        ({"input_ids": [1, 2], "loss_mask": [0.5, 1]}, "loss_mask of a row holds 0.5"),
        ({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 2]}, "attention_mask of a row holds 2"),
        ({"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]}, "position_ids of a row begin anew"),
        ({"input_ids": [[1, 2]]}, r"input_ids of a row are of shape \(1, 2\)"),
        ({"input_ids": [0.5, 1.0]}, "type float64, but they must be integers"),
        ({"input_ids": []}, "row of 0 tokens has nothing but padding"),
        ({"input_ids": [1], "attention_mask": [0]}, "row of 1 tokens has nothing but padding"),
        ({"input_ids": [1] * 13}, "A row has 13 tokens, but the model takes at most 12"),
        ({"text": "tyger"}, "A row has no input_ids, but text"),
        ([1, 2], "A row has no input_ids, but list"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_by_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        batch_of(row)


def test_a_denoiser_learns_the_rest_from_a_prompt_that_is_never_masked(tmp_path):
    """A new denoiser knows nothing: nats per token that counts are the logarithm of 12 on average."""
    seen = []

    class Watched(MDLMForMaskedLM):
        def forward(self, input_ids, **kwargs):
            seen.append(input_ids == 12)
            return super().forward(input_ids, **kwargs)

    ids = np.random.default_rng(0).integers(0, 12, (64, 12))
    rows = Dataset.from_dict({"input_ids": ids, "labels": np.where(np.arange(12) < 8, -100, ids)})
    torch.manual_seed(0)
    trainer = trainer_of(
        "denoiser",
        tmp_path,
        rows,
        model=Watched(tiny_config()),
        learning_rate=0.0,
        max_steps=60,
    )
    trainer.train()
    masked = torch.cat(seen)
    assert masked[:, 8:].any(0).all() and not masked[:, :8].any()

    loss, error = mean_and_error(logged(trainer))
    assert error < 0.2 and abs(loss - math.log(12)) < 4 * error


def test_the_autoregressive_loss_is_that_of_the_tokens_that_count(tmp_path):
    rows, model = rows_with_prompts(8), tiny_causal()
    nats = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(ids).logits[0]
        nats.append(cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=-100)[labels[1:] != -100])

    trainer = trainer_of("autoregressive", tmp_path, rows, rows, model=model, max_steps=1)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    expected = float(torch.cat(nats).mean())
    assert logged(trainer)[0] == pytest.approx(expected, abs=1e-6)
    assert before == pytest.approx(expected, abs=1e-6)


def test_energies_tell_apart_texts_that_agree_in_the_prompt(tmp_path):
    seen = []
    rows = Dataset.from_list([{"input_ids": [i, i, i, i], "labels": [-100, -100, i, i]} for i in range(12)])
    trainer = trainer_of("energy", tmp_path, rows, max_steps=6)
    trainer.model.energy_model.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    trainer.train()
    candidates, noisy = (torch.cat(x) for x in zip(*seen, strict=True))
    text = candidates[:, 0, :1]  # every row repeats its first token

    assert (candidates[:, :, :2] == text.unsqueeze(-1)).all() and (candidates[:, 0] == text).all()
    assert (noisy[:, :2] == text).all() and (noisy[:, 2:] == 12).any(0).all()
    assert (candidates[:, 1:, 2:] != text.unsqueeze(-1)).any()


@KIND
def test_evaluation_counts_what_training_counts(tmp_path, kind):
    rows = rows_with_prompts(11)
    trainer = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4)
    metrics, seed = trainer.evaluate(), trainer.args.seed
    texts, options = (trainer.model, [row["input_ids"] for row in rows]), {"scored": scored(rows)}

    if kind == "denoiser":
        assert metrics["eval_loss"] == pytest.approx(nelbo(*texts, **options, num_samples=2, seed=seed).value, abs=1e-5)
    elif kind == "autoregressive":
        assert metrics["eval_loss"] == pytest.approx(autoregressive_nll(*texts, **options).value, abs=1e-5)
    else:
        options |= {"num_steps": 4, "num_samples": 1, "seed": seed}
        bound, without = sampler_bound(*texts, num_candidates=2, **options), discrete_nelbo(*texts, **options)
        assert metrics["eval_sampler_bound"] == pytest.approx(bound.value, abs=1e-5)
        assert metrics["eval_denoiser_bound"] == pytest.approx(without.value, abs=1e-5)
        assert abs(bound.value - without.value) > 1e-3
    assert trainer.predict(rows).predictions[:, trainer.measured.index("tokens")].tolist() == [
        sum(row) for row in scored(rows)
    ]


# ----------------------------------------------------------------------------------------------------------- collators


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


@KIND_OR_DRAFTS
def test_a_step_in_which_nothing_counts_is_refused(tmp_path, kind):
    ids = [[1, 2, 3]] * 8
    rows = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * 3] * 8})
    trainer = trainer_of(kind, tmp_path, rows, rows, max_steps=1)
    with pytest.raises(ValueError, match="Nothing counts in step 1: its 8 rows are padding, special"):
        trainer.train()
    with pytest.raises(ValueError, match="Nothing counts in the 8 rows of the evaluation"):
        trainer.evaluate()


def test_an_evaluation_of_no_rows_is_refused(tmp_path):
    trainer = trainer_of("denoiser", tmp_path, random_blocks(8), random_blocks(8).select([]))
    with pytest.raises(ValueError, match="There are no rows to evaluate"):
        trainer.evaluate()


@KIND
def test_rows_in_which_nothing_counts_weigh_nothing(tmp_path, kind):
    """A row with a start token alone, or of which the prompt has filled all, beside others."""
    without = rows_with_prompts(8)
    empty = Dataset.from_list(
        [
            {"input_ids": [5, 6, 7], "labels": [-100] * 3},
            {"input_ids": [5], "labels": [-100]},
        ]
    )
    rows = Dataset.from_list([*without, *empty])  # at the end: the others keep their numbers
    metrics = [trainer_of(kind, tmp_path, r, r, per_device_eval_batch_size=3).evaluate() for r in (without, rows)]
    for name in metrics[0]:
        if not name.endswith(("time", "per_second")):
            assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-5), name

    trainer = trainer_of(kind, tmp_path, Dataset.from_list([*empty, *empty, without[0]]), max_steps=2)
    trainer.train()
    assert max(logged(trainer)) > 0


# ------------------------------------------------------------------------------------------------ the division of rows


def test_numbers_of_a_row_do_not_depend_on_other_rows_and_padding():
    key = 42, 0, 7
    shift, scalars, wide, wider = row_uniforms(key, range(6), (), (9,), (9, 2))
    again, few, narrow, narrower = row_uniforms(key, [5, 2], (), (4,), (4, 2))
    assert shift == again and torch.equal(few, scalars[[5, 2]])
    assert torch.equal(narrow, wide[[5, 2], :4]) and torch.equal(narrower, wider[[5, 2], :4])


def test_numbers_of_other_keys_rows_and_shapes_are_others():
    drawn = [
        value
        for key in ((0, 0, 1), (0, 0, 2), (1, 0, 1), (0, 1))
        for part in row_uniforms(key, range(3), (), (40,), (40,))
        for value in part.flatten().tolist()
    ]
    assert len(set(drawn)) == len(drawn)


def test_numbers_of_rows_are_uniform_and_independent():
    (_, drawn) = row_uniforms((3, 0, 5), range(400), (500,))
    flat = drawn.flatten()
    assert 0 <= flat.min() and flat.max() < 1
    assert flat.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / len(flat)) ** 0.5)
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        correlation = np.corrcoef(a.flatten(), b.flatten())[0, 1]
        assert abs(correlation) < 4 / a.numel() ** 0.5


def losses_and_weights(kind, folder, rows, size, steps, model=None, **changes):
    changes = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "ema_decay": 0} | changes
    division = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer = trainer_of(kind, folder, rows, model=model, **division, **changes)
    trainer.train()
    return logged(trainer), torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]), trainer


@KIND_OR_DRAFTS
@pytest.mark.parametrize("size, steps", [(2, 4), (1, 8), (4, 2)])
def test_rows_of_unequal_length_have_one_loss_and_gradient_however_they_are_divided(
    tmp_path,
    kind,
    size,
    steps,
):
    empty = [{"input_ids": [5, 6], "labels": [-100, -100]}] * 3
    rows = Dataset.from_list([*rows_with_prompts(13), *empty])
    whole, weights, _ = losses_and_weights(kind, tmp_path, rows, 8, 1)
    parts, others, trainer = losses_and_weights(kind, tmp_path, rows, size, steps)
    assert parts == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)
    assert trainer.rows_per_step == 8


@KIND_OR_DRAFTS
def test_a_short_last_batch_has_one_loss_however_it_is_divided(tmp_path, kind):
    """Eleven rows in two steps: of eight and of three, or of two and one."""
    rows, options = rows_with_prompts(11), {"max_steps": -1, "num_train_epochs": 1}
    whole, weights, trainer = losses_and_weights(kind, tmp_path, rows, 8, 1, **options)
    assert trainer.rows_per_step == 3 and len(whole) == 2
    parts, others, _ = losses_and_weights(kind, tmp_path, rows, 2, 4, **options)
    assert parts == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)


def test_a_causal_model_that_averages_by_itself_is_weighed_by_its_tokens(tmp_path):
    def model():
        found = tiny_gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        found.accepts_loss_kwargs = False
        return found

    rows = rows_with_prompts(16, vocabulary=11)
    whole, weights, trainer = losses_and_weights("autoregressive", tmp_path, rows, 8, 1, model())
    assert not trainer.model_accepts_loss_kwargs

    parts, others, _ = losses_and_weights("autoregressive", tmp_path, rows, 1, 8, model())
    assert parts == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)


@KIND_OR_DRAFTS
def test_padding_on_either_side_changes_no_loss(tmp_path, kind):
    rows = list(rows_with_prompts(8))
    padded = {"left": [], "right": []}
    for row in rows:
        missing = 12 - len(row["input_ids"])
        for side, found in padded.items():
            fill = (lambda x, p: p + x) if side == "left" else (lambda x, p: x + p)
            found.append(
                {
                    "input_ids": fill(row["input_ids"], [7] * missing),
                    "labels": fill(row["labels"], [-100] * missing),
                    "attention_mask": fill([1] * len(row["input_ids"]), [0] * missing),
                }
            )

    bare, *others = (
        losses_and_weights(kind, tmp_path, Dataset.from_list(found), 4, 2)[0]
        for found in (rows, padded["left"], padded["right"])
    )
    assert others[0] == pytest.approx(bare, abs=1e-6) and others[1] == pytest.approx(bare, abs=1e-6)


@KIND_OR_DRAFTS
def test_the_batch_size_of_an_evaluation_changes_nothing(tmp_path, kind):
    rows = rows_with_prompts(11)
    found = []
    for size in (11, 4, 1):
        trainer = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=size)
        found.append(trainer.predict(rows).predictions)
    assert len(found[0]) == 11 and np.ptp(found[0], axis=0).max() > 0.1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5, atol=1e-5)


def test_texts_have_the_noise_of_their_numbers():
    texts = blocks(np.random.default_rng(0).integers(0, 12, (6, 8)))["input_ids"]
    model, options = tiny_denoiser(), {"num_samples": 2, "seed": 3}
    whole = nelbo(model, texts, **options).sequence_nats
    part = nelbo(model, texts[2:5], text_numbers=[2, 3, 4], **options).sequence_nats
    assert part == pytest.approx(whole[2:5], abs=1e-5)

    one = {"num_samples": 1, "seed": 3, "num_steps": 4}  # times on a lattice over the texts
    whole, part = discrete_nelbo(model, texts, **one), discrete_nelbo(model, texts[4:], text_numbers=(4, 5), **one)
    assert part.sequence_nats == pytest.approx(whole.sequence_nats[4:], abs=1e-5)
    with pytest.raises(ValueError, match="2 numbers for 6 texts"):
        nelbo(model, texts, text_numbers=[0, 1])
