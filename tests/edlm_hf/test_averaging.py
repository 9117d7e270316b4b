"""The averaged weights: how they are made, and that they are evaluated, saved and chosen as the best."""

import numpy as np
import pytest
from torch import nn
from training import denoiser_trainer, random_blocks, same
from transformers import AutoModelForMaskedLM

from edlm_hf.evaluation import nelbo
from edlm_hf.training import ExponentialMovingAverage


def test_the_average_warms_up_and_then_decays():
    model = nn.Linear(1, 1, bias=False)
    average, weights = ExponentialMovingAverage(0.5), [1.0, 2.0, 4.0, 8.0]
    state = lambda step: type("State", (), {"global_step": step})  # noqa: E731
    nn.init.constant_(model.weight, weights[0])
    average.on_train_begin(None, state(0), None, model=model)
    expected = weights[0]

    for step, weight in enumerate(weights[1:], 1):
        nn.init.constant_(model.weight, weight)
        average.on_step_end(None, state(step), None, model=model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight

    with average.applied(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == weights[-1]
    with pytest.raises(ValueError, match=r"ema_decay is 1.*\[0, 1\)"):
        ExponentialMovingAverage(1)


def test_a_checkpoint_holds_the_averaged_model_and_agrees_with_the_evaluation(tmp_path):
    rows = random_blocks(8)
    trainer = denoiser_trainer(
        tmp_path,
        rows=rows,
        eval_rows=rows,
        save_strategy="steps",
        save_steps=10,
    )
    trainer.train()
    metrics = trainer.evaluate()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-10").eval()
    assert not same(loaded, trainer.model)
    with trainer.averaged_weights():
        assert same(loaded, trainer.model)

    bound = nelbo(loaded, np.stack(rows["input_ids"]), num_samples=2, seed=trainer.args.seed)
    assert metrics["eval_loss"] == pytest.approx(bound.value, abs=1e-6)
    trainer.save_model(tmp_path / "final")
    assert same(loaded, AutoModelForMaskedLM.from_pretrained(tmp_path / "final"))


def test_without_an_average_the_present_weights_are_evaluated_and_saved(tmp_path):
    rows = random_blocks(8)
    trainer = denoiser_trainer(tmp_path, rows=rows, eval_rows=rows, ema_decay=0, save_strategy="steps", save_steps=10)
    trainer.train()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-10").eval()
    assert same(loaded, trainer.model)

    bound = nelbo(loaded, np.stack(rows["input_ids"]), num_samples=2, seed=trainer.args.seed)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(bound.value, abs=1e-6)


def test_the_best_model_is_the_averaged_one(tmp_path):
    rows = random_blocks(8)
    trainer = denoiser_trainer(
        tmp_path, rows=rows, eval_rows=rows, save_strategy="steps", save_steps=5, eval_strategy="steps", eval_steps=5,
        load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    best = AutoModelForMaskedLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert same(best, trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
