"""Losses and gradients of a global batch do not depend on its division into steps, nor on padding."""

import pytest
import torch
from datasets import Dataset
from published import tiny_gpt2
from training import KIND_OR_DRAFTS, denoiser_trainer, logged, rows_with_prompts, trainer_of


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


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path, accumulation):
    runs = []
    for parts in (1, accumulation):
        trainer = denoiser_trainer(
            tmp_path, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts, max_steps=6
        )
        trainer.train()
        runs.append((logged(trainer), logged(trainer, "grad_norm")))

    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)
