"""Rows as users bring them: labels and masks of what counts, and padding.

There are also rows in which nothing counts.
"""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from published import tiny_causal, tiny_config
from torch.nn.functional import cross_entropy
from training import KIND, KIND_OR_DRAFTS, logged, mean_and_error, rows_with_prompts, trainer_of

from edlm_hf import MDLMForMaskedLM
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, nelbo, sampler_bound
from edlm_hf.training import DataCollatorForBlocks


def batch_of(*rows, **changes) -> dict[str, torch.Tensor]:
    """The batch that the collator of a tiny model makes of some rows."""
    collate = DataCollatorForBlocks(tiny_config(**changes))
    return collate(rows)


def scored(rows) -> list[list[bool]]:
    """Which tokens of every row count."""
    return [[label != -100 for label in row["labels"]] for row in rows]


def test_tokens_with_the_label_minus_100_are_context():
    batch = batch_of(
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [5, 6]},
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4], [5, 6, -100, -100]]


def test_labels_only_take_away():
    row = {"input_ids": [11, 1, 2, 10], "labels": [11, -100, 2, 10]}
    batch = batch_of(row, bos_token_id=11, eos_token_id=10)
    assert batch["labels"].tolist() == [[-100, -100, 2, -100]]


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_what_counts_are_read_as_labels_are(name):
    row = {"input_ids": [1, 2, 3, 4], name: [0, 0, 1, 1]}
    assert batch_of(row)["labels"].tolist() == [[-100, -100, 3, 4]]

    # a token counts where both say so
    row["labels"] = [-100, 2, -100, 4]
    assert batch_of(row)["labels"].tolist() == [[-100, -100, -100, 4]]


def test_a_mask_of_special_tokens_is_read():
    row = {"input_ids": [7, 2, 3, 8], "special_tokens_mask": [1, 0, 0, 1]}
    assert batch_of(row)["labels"].tolist() == [[-100, 2, 3, -100]]


def test_columns_that_a_row_has_not_are_none():
    rows = Dataset.from_list(
        [
            {"input_ids": [1, 2], "labels": [-100, 2]},
            {"input_ids": [3, 4]},
        ]
    )
    assert batch_of(*rows)["labels"].tolist() == [[-100, 2], [3, 4]]


@pytest.mark.parametrize("padding", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
def test_padding_on_either_side_is_left_out(padding):
    real = np.array(padding, bool)
    ids = np.full(5, 9)
    ids[real] = [1, 2, 3]
    labels = np.full(5, 9)
    labels[real] = [-100, 2, 3]

    batch = batch_of({"input_ids": ids, "attention_mask": padding, "labels": labels})
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"input_ids": [1, 2, 3], "labels": [1, 2]},
            r"labels of a row has the shape \(2,\), but its input_ids are 3",
        ),
        (
            {"input_ids": [1, 2], "labels": 1},
            r"labels of a row has the shape \(\)",
        ),
        (
            {"input_ids": [1, 2, 3], "labels": [-100, 3, -100]},
            "label of token 1 of a row is 3, but the token is 2",
        ),
        (
            {"input_ids": [1, 2], "completion_mask": [0]},
            "completion_mask of a row has the shape",
        ),
        (
            {"input_ids": [1, 2], "loss_mask": [0.5, 1]},
            "loss_mask of a row holds 0.5",
        ),
        (
            {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 2]},
            "attention_mask of a row holds 2",
        ),
        (
            {"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]},
            "position_ids of a row begin anew",
        ),
        ({"input_ids": [[1, 2]]}, r"input_ids of a row are of shape \(1, 2\)"),
        ({"input_ids": [0.5, 1.0]}, "type float64, but they must be integers"),
        ({"input_ids": []}, "row of 0 tokens has nothing but padding"),
        (
            {"input_ids": [1], "attention_mask": [0]},
            "row of 1 tokens has nothing but padding",
        ),
        ({"input_ids": [1] * 13}, "A row has 13 tokens, but the model takes at most 12"),
        ({"text": "tyger"}, "A row has no input_ids, but text"),
        ([1, 2], "A row has no input_ids, but list"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_by_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        batch_of(row)


def test_a_denoiser_learns_the_rest_from_a_prompt_that_is_never_masked(tmp_path):
    """A new denoiser knows nothing: nats per token that counts are log 12 on average."""
    seen = []

    class Watched(MDLMForMaskedLM):
        def forward(self, input_ids, **kwargs):
            seen.append(input_ids == 12)
            return super().forward(input_ids, **kwargs)

    ids = np.random.default_rng(0).integers(0, 12, (64, 12))
    labels = np.where(np.arange(12) < 8, -100, ids)
    rows = Dataset.from_dict({"input_ids": ids, "labels": labels})
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

    masked = torch.cat(seen)  # (rows, L)
    assert masked[:, 8:].any(0).all()
    assert not masked[:, :8].any()

    loss, error = mean_and_error(logged(trainer))
    assert error < 0.2
    assert abs(loss - math.log(12)) < 4 * error


def test_the_autoregressive_loss_is_that_of_the_tokens_that_count(tmp_path):
    rows = rows_with_prompts(8)
    model = tiny_causal()
    nats = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]

        # logits of position i are for token i + 1
        labels = torch.tensor(row["labels"])[1:]
        counts = labels != -100
        nats.append(cross_entropy(logits[counts], labels[counts], reduction="none"))

    trainer = trainer_of("autoregressive", tmp_path, rows, rows, model=model, max_steps=1)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()

    expected = float(torch.cat(nats).mean())
    assert before == pytest.approx(expected, abs=1e-6)
    assert logged(trainer)[0] == pytest.approx(expected, abs=1e-6)


def test_energies_tell_apart_texts_that_agree_in_the_prompt(tmp_path):
    rows = []
    for token in range(12):
        rows.append({"input_ids": [token] * 4, "labels": [-100, -100, token, token]})

    seen_candidates = []
    seen_noisy = []

    def record(module, args):
        candidates, noisy, *_ = args
        seen_candidates.append(candidates)
        seen_noisy.append(noisy)

    trainer = trainer_of("energy", tmp_path, Dataset.from_list(rows), max_steps=6)
    trainer.model.energy_model.register_forward_pre_hook(record)
    trainer.train()

    candidates = torch.cat(seen_candidates)  # (B, k, L), the data first
    noisy = torch.cat(seen_noisy)
    text = candidates[:, 0, :1]  # every row repeats its first token
    assert (candidates[:, 0] == text).all()

    # all have the prompt, which is never masked
    assert (candidates[:, :, :2] == text.unsqueeze(-1)).all()
    assert (noisy[:, :2] == text).all()
    assert (noisy[:, 2:] == 12).any(0).all()
    assert (candidates[:, 1:, 2:] != text.unsqueeze(-1)).any()


@KIND
def test_evaluation_counts_what_training_counts(tmp_path, kind):
    rows = rows_with_prompts(11)
    trainer = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()

    # the bounds of these texts by the functions of the evaluation
    model = trainer.model
    seed = trainer.args.seed
    texts = [row["input_ids"] for row in rows]
    counts = scored(rows)
    if kind == "denoiser":
        bound = nelbo(model, texts, scored=counts, num_samples=2, seed=seed)
        assert metrics["eval_loss"] == pytest.approx(bound.value, abs=1e-5)
    elif kind == "autoregressive":
        nll = autoregressive_nll(model, texts, scored=counts)
        assert metrics["eval_loss"] == pytest.approx(nll.value, abs=1e-5)
    else:
        options = {
            "scored": counts,
            "num_steps": 4,
            "num_samples": 1,
            "seed": seed,
        }
        bound = sampler_bound(model, texts, num_candidates=2, **options)
        without_energy = discrete_nelbo(model, texts, **options)
        assert metrics["eval_sampler_bound"] == pytest.approx(bound.value, abs=1e-5)
        assert metrics["eval_denoiser_bound"] == pytest.approx(without_energy.value, abs=1e-5)
        assert abs(bound.value - without_energy.value) > 1e-3

    predictions = trainer.predict(rows).predictions
    num_tokens = predictions[:, trainer.measured.index("tokens")]
    assert num_tokens.tolist() == [sum(row) for row in counts]


@KIND_OR_DRAFTS
def test_a_step_in_which_nothing_counts_is_refused(tmp_path, kind):
    columns = {
        "input_ids": [[1, 2, 3]] * 8,
        "labels": [[-100] * 3] * 8,
    }
    rows = Dataset.from_dict(columns)
    trainer = trainer_of(kind, tmp_path, rows, rows, max_steps=1)
    message = "Nothing counts in step 1: its 8 rows are padding, special"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match="Nothing counts in the 8 rows of the evaluation"):
        trainer.evaluate()


@KIND
def test_rows_in_which_nothing_counts_weigh_nothing(tmp_path, kind):
    """A row has a start token alone, or its prompt has filled all of it."""
    without = rows_with_prompts(8)
    empty = [
        {"input_ids": [5, 6, 7], "labels": [-100] * 3},
        {"input_ids": [5], "labels": [-100]},
    ]
    both = Dataset.from_list([*without, *empty])  # at the end: the others keep their numbers

    metrics = []
    for rows in (without, both):
        trainer = trainer_of(kind, tmp_path, rows, rows, per_device_eval_batch_size=3)
        metrics.append(trainer.evaluate())

    expected, found = metrics
    for name in expected:
        if not name.endswith(("time", "per_second")):
            assert found[name] == pytest.approx(expected[name], abs=1e-5), name

    rows = Dataset.from_list([*empty, *empty, without[0]])
    trainer = trainer_of(kind, tmp_path, rows, max_steps=2)
    trainer.train()
    assert max(logged(trainer)) > 0
