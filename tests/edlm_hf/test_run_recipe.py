"""A training command that is repeated goes on where its run stopped, and never in the folder of another run."""

from pathlib import Path

import pytest
from command_line import call, result_of

from edlm_hf.commands.run_recipe import RECIPE, check_same_run


def test_a_command_that_stops_at_its_time_limit_goes_on_when_repeated(recipe):
    arguments = "train-denoiser", recipe("denoiser"), "--json"
    parts = result_of(call(*arguments, "--time_limit_minutes", 0))
    assert (parts["finished"], parts["steps"], parts["max_steps"]) == (False, 1, 12)
    assert "eval_loss" not in parts
    whole = result_of(call(*arguments))
    assert whole["finished"] and whole["steps"] == 12
    other = result_of(call(*arguments, "--output_dir", recipe("denoiser") + ".whole"))
    assert other["eval_loss"] == whole["eval_loss"]


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 0.05}])
def test_a_run_that_is_finished_is_only_evaluated_when_repeated(tmp_path, recipe, length):
    arguments = "train-denoiser", recipe("denoiser", **length), "--json"
    first = result_of(call(*arguments))
    weights = (tmp_path / "denoiser" / "model.safetensors").read_bytes()
    for _ in range(2):
        again = result_of(call(*arguments))
        assert again["steps"] == first["steps"] and again["eval_loss"] == first["eval_loss"]

    assert (tmp_path / "denoiser" / "model.safetensors").read_bytes() == weights
    if "num_train_epochs" not in length:
        assert result_of(call(*arguments, "--max_steps", 6))["steps"] == 6


def test_a_finished_run_keeps_its_best_model_when_repeated(tmp_path, recipe):
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "ema_decay": 0,
    }
    # The first checkpoint is the best
    best |= {"metric_for_best_model": "loss", "greater_is_better": True}
    arguments = "train-denoiser", recipe("denoiser", max_steps=6, **best), "--json"
    first, weights = result_of(call(*arguments)), (tmp_path / "denoiser" / "model.safetensors").read_bytes()
    assert weights != (tmp_path / "denoiser" / "checkpoint-6" / "model.safetensors").read_bytes()
    assert result_of(call(*arguments))["eval_loss"] == first["eval_loss"]
    assert (tmp_path / "denoiser" / "model.safetensors").read_bytes() == weights


def test_what_was_trained_on_is_never_held_out_later(tmp_path, recipe):
    (tmp_path / "without.yaml").write_text(
        Path(
            recipe(
                "denoiser",
                max_steps=4,
                eval_dataset=None,
            )
        ).read_text()
    )
    without, arguments = (
        ("train-denoiser", tmp_path / "without.yaml"),
        ("train-denoiser", recipe("denoiser", max_steps=4)),
    )
    assert call(*arguments).exit_code == 0

    later = call(*without)
    assert later.exit_code == 1 and "held_out is True, there False" in later.stderr
    (tmp_path / "denoiser" / "recipe.json").unlink()  # as a run of the Trainer alone leaves it
    later = call(*without)
    assert later.exit_code == 1 and "give --eval_dataset" in later.stderr
    assert call(*arguments).exit_code == 0 and (tmp_path / "denoiser" / "recipe.json").exists()


def test_another_run_in_the_same_folder_is_refused_by_what_differs(tmp_path, recipe):
    arguments = "train-denoiser", recipe("denoiser", max_steps=4)
    result_of(call(*arguments, "--json"))
    (tmp_path / "other.txt").write_text(200 * "another text ")
    other = call(*arguments, "--dataset", tmp_path / "other.txt", "--learning_rate", 0.5, "--max_steps", 8)
    assert other.exit_code == 1 and "holds the checkpoints of another run" in other.stderr
    assert "other.txt" in other.stderr and "learning_rate is 0.5, there 0.003" in other.stderr
    assert call(*arguments, "--logging_steps", 1, "--eval_blocks", 3, "--max_steps", 5).exit_code == 0

    file = tmp_path / "nowhere.yaml"
    file.write_text(f"dataset: {tmp_path / 'other.txt'}\n")
    nowhere = call("train-denoiser", file)
    assert nowhere.exit_code == 2 and "--output_dir" in nowhere.stderr


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--optim", "sgd"), "optim is 'sgd', there 'adamw_torch"),
        (("--adam_beta2", 0.9), "adam_beta2 is 0.9, there 0.999"),
        (("--max_grad_norm", 2), "max_grad_norm is 2.0, there 1.0"),
        (("--data_seed", 5), "data_seed is 5, there None"),
        (("--neftune_noise_alpha", 1), "neftune_noise_alpha is 1.0, there None"),
        (("--dataloader_drop_last", "true"), "dataloader_drop_last is True, there False"),
    ],
)
def test_a_run_does_not_go_on_with_other_steps(tmp_path, recipe, flags, difference):
    arguments = "train-denoiser", recipe("denoiser", max_steps=2)
    result_of(call(*arguments, "--json"))
    other = call(*arguments, "--max_steps", 4, *flags)
    assert other.exit_code == 1 and difference in other.stderr


def test_a_run_does_not_go_on_with_a_text_that_was_edited(tmp_path, recipe):
    text = tmp_path / "edited.txt"
    text.write_text(300 * "a text for this run ")
    arguments = "train-denoiser", recipe("denoiser", max_steps=2, dataset=str(text))
    result_of(call(*arguments, "--json"))
    assert call(*arguments, "--max_steps", 3).exit_code == 0

    # The same name
    text.write_text(200 * "a text for this run ")
    later = call(*arguments, "--max_steps", 4)
    assert later.exit_code == 1 and "training_rows is" in later.stderr and "there" in later.stderr


def test_a_run_without_a_step_says_what_is_missing(recipe):
    result = call("train-denoiser", recipe("denoiser", max_steps=2), *(
        "--per_device_train_batch_size", 100_000, "--dataloader_drop_last", "true",
    ))  # fmt: skip
    assert result.exit_code == 1 and "does not fill a batch of 100000 rows" in result.stderr


def test_a_run_is_known_by_the_old_names_of_its_options(tmp_path):
    (tmp_path / RECIPE).write_text('{"denoising_steps": 4}')
    with pytest.raises(ValueError, match="max_denoising_steps is 8, there 4"):
        check_same_run(str(tmp_path), {"max_denoising_steps": 8})
    check_same_run(str(tmp_path), {"max_denoising_steps": 4})
