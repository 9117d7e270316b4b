"""Evaluations of the trainers: which rows they reach, what they measure, and metrics of the user."""

import math

import numpy as np
import pytest
from training import KIND, KIND_OR_DRAFTS, KINDS, denoiser_trainer, random_blocks, rows_with_prompts, trainer_of
from transformers import ByT5Tokenizer

from edlm_hf.tokenization import add_mask_token, text8_tokenizer
from edlm_hf.training.row_evaluation import is_character_level


@KIND
@pytest.mark.parametrize(
    "options",
    [
        {"eval_do_concat_batches": False},
        {"eval_accumulation_steps": 1},
        {"batch_eval_metrics": True},
        {"include_for_metrics": ["inputs"]},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_num_workers": 1},
        {"dataloader_drop_last": True},
        {"accelerator_config": {"split_batches": True, "even_batches": False}},
    ],
)
def test_how_an_evaluation_is_gathered_changes_nothing(tmp_path, kind, options):
    rows = rows_with_prompts(11)
    plain = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4).evaluate()
    found = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4, **options).evaluate()
    assert found.keys() == plain.keys()
    for name in plain:
        if not name.endswith(("time", "per_second")):
            assert found[name] == pytest.approx(plain[name], abs=1e-6), name


@KIND
def test_predictions_are_what_was_measured_of_every_row(tmp_path, kind):
    rows = rows_with_prompts(11)
    trainer = trainer_of(kind, tmp_path, rows, per_device_eval_batch_size=4)
    found = trainer.predict(rows)
    assert found.predictions.shape == (11, len(trainer.measured)) and found.label_ids is None
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], abs=1e-6)

    trainer = trainer_of(kind, tmp_path, rows, per_device_eval_batch_size=4, prediction_loss_only=True)
    alone = trainer.predict(rows)
    assert alone.predictions is None
    assert {name for name in alone.metrics if "loss" in name} == {"test_loss", "test_loss_standard_error"}
    assert alone.metrics["test_loss"] == found.metrics["test_loss"]
    assert "test_perplexity" not in alone.metrics


@KIND
def test_metrics_of_the_user_are_added_to_ours(tmp_path, kind):
    rows = rows_with_prompts(11)

    def metrics(found):
        assert found.label_ids is None and len(found.inputs) == 11
        return {"tokens": float(found.predictions["tokens"].sum())}

    given = {"compute_metrics": metrics}
    options = {"per_device_eval_batch_size": 4, "include_for_metrics": ["inputs"]}
    found = trainer_of(kind, tmp_path, rows, rows, given=given, **options).evaluate()
    assert found["eval_tokens"] == sum(label != -100 for labels in rows["labels"] for label in labels)
    assert (
        found["eval_loss"]
        == trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4).evaluate()["eval_loss"]
    )


def test_metrics_of_the_user_by_batch(tmp_path):
    rows, seen = rows_with_prompts(11), []

    def metrics(found, compute_result):
        seen.append(len(found.predictions["tokens"]))
        return {"batches": len(seen)} if compute_result else {}

    options = {"per_device_eval_batch_size": 4, "batch_eval_metrics": True}
    trainer = trainer_of(
        "denoiser",
        tmp_path,
        rows,
        rows,
        given={"compute_metrics": metrics},
        **options,
    )
    assert trainer.evaluate()["eval_batches"] == 3 and seen == [4, 4, 3]
    with pytest.raises(ValueError, match="compute_metrics has no argument compute_result"):
        trainer_of(
            "denoiser",
            tmp_path,
            rows,
            rows,
            given={"compute_metrics": lambda found: {}},
            **options,
        )


def test_several_sets_are_evaluated_by_name(tmp_path):
    rows = rows_with_prompts(11)
    sets = {"first": rows, "second": rows.select(range(5))}
    found = trainer_of("denoiser", tmp_path, rows, sets).evaluate()
    assert found["eval_first_loss"] == trainer_of("denoiser", tmp_path, rows, rows).evaluate()["eval_loss"]
    assert found["eval_second_loss"] != found["eval_first_loss"]


def test_metrics_that_are_none_are_refused(tmp_path):
    given = {"compute_metrics": lambda prediction: None}
    trainer = trainer_of("denoiser", tmp_path, random_blocks(8), random_blocks(8), given=given)
    with pytest.raises(ValueError, match="compute_metrics returned a NoneType"):
        trainer.evaluate()


@pytest.mark.parametrize("kind", [*KINDS, "drafts"])
def test_a_best_metric_that_is_not_measured_is_refused_before_training(tmp_path, kind):
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "metric_for_best_model": "nosuch"}
    trainer = trainer_of(kind, tmp_path, random_blocks(16), random_blocks(16), **options)
    with pytest.raises(ValueError, match="metric_for_best_model is 'nosuch', but an evaluation measures .*loss"):
        trainer.train()
    assert trainer.state.global_step == 0

    # Everything that is measured can be the metric
    measured = [name for name in trainer.evaluate() if name.startswith("eval_")]
    for name in measured:
        trainer.args.metric_for_best_model = name
        trainer.check_best_metric()


def test_an_evaluation_of_no_rows_is_refused(tmp_path):
    trainer = trainer_of("denoiser", tmp_path, random_blocks(8), random_blocks(8).select([]))
    with pytest.raises(ValueError, match="There are no rows to evaluate"):
        trainer.evaluate()


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


def test_evaluation_reaches_the_last_row_where_training_drops_incomplete_batches(tmp_path):
    rows = random_blocks(11)
    trainer = denoiser_trainer(
        tmp_path,
        rows=rows,
        eval_rows=rows,
        dataloader_drop_last=True,
        eval_num_samples=1,
    )
    found = trainer.predict(rows).predictions
    assert len(found) == 11 and (found[:, trainer.measured.index("tokens")] == 12).all()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.args.dataloader_drop_last


def test_bits_are_per_character_where_tokens_are_characters():
    assert is_character_level(text8_tokenizer())
    assert not is_character_level(None)
    words = add_mask_token(text8_tokenizer(start_token=False))
    words.add_tokens(["ab"])
    assert not is_character_level(words)


def test_bits_are_not_per_character_where_tokens_are_bytes():
    bytes_of_text = ByT5Tokenizer()
    assert len(bytes_of_text.tokenize("é")) == 2
    assert not is_character_level(bytes_of_text)
