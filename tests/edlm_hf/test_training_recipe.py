"""Recipes and flags of the training commands: the shipped ones are read, and wrong ones are refused by name."""

import re
from pathlib import Path

import pytest
import yaml
from command_line import call
from training_commands import CLASSES

from edlm_hf import MDLMForMaskedLM
from edlm_hf.commands.new_models import new_energy, new_model
from edlm_hf.commands.training_recipe import parse
from edlm_hf.tokenization import text8_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"


def test_old_names_of_flags_and_keys_are_taken_and_told(recipe, capsys):
    file = recipe("energy", denoiser="somewhere", denoising_steps=4)
    *_, args = parse(*CLASSES["energy"], [file, "--eval_denoising_steps", "3"])
    assert (args.max_denoising_steps, args.eval_max_denoising_steps) == (4, 3)

    told = capsys.readouterr().err
    assert "edlm train-energy: old names, which work until 0.3.0: denoising_steps (now max_denoising_steps)." in told
    assert "eval_denoising_steps (now eval_max_denoising_steps)" in told

    *_, args = parse(*CLASSES["denoiser"], [recipe("denoiser"), "--eval-noise-samples=4"])
    assert args.eval_num_samples == 4


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"num_candidates": 3}, (), "sets num_candidates, which edlm train-denoiser does not have"),
        ({"max_steps": 2.5}, (), "argument --max_steps/--max-steps: invalid int value: '2.5'"),
        ({"muon": "perhaps"}, (), "argument --muon"),
        ({}, ("--learning_speed", 3), "there is no --learning_speed 3"),
        ({}, ("--max_steps", "many"), "argument --max_steps"),
    ],
)
def test_wrong_recipes_and_flags_are_exit_code_2(recipe, changes, flags, words):
    result = call("train-denoiser", recipe("denoiser", **changes), *flags)
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) < 4, result.stderr


@pytest.mark.parametrize("line", ["save_strategy: no", "save_strategy: 'no'"])
def test_the_word_no_may_be_written_without_quotes(tmp_path, line):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"dataset: a.txt\noutput_dir: {tmp_path / 'out'}\n{line}\nmuon: no\n")
    *_, args = parse(*CLASSES["denoiser"], [str(file)])
    assert args.save_strategy == "no" and args.muon is False


def test_an_output_folder_has_a_name_and_is_not_a_file(tmp_path, recipe):
    empty = call("train-denoiser", recipe("denoiser"), "--output_dir", "")
    assert empty.exit_code == 2 and "output_dir is empty" in empty.stderr

    (tmp_path / "file").write_text("a text")
    taken = call("train-denoiser", recipe("denoiser"), "--output_dir", tmp_path / "file")
    assert taken.exit_code == 2 and "which is a file" in taken.stderr and (tmp_path / "file").read_text() == "a text"


def test_a_key_that_is_given_twice_is_exit_code_2(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("dataset: a.txt\noutput_dir: out\nmax_steps: 2\nmax_steps: 3\n")
    result = call("train-denoiser", file)
    assert result.exit_code == 2 and "max_steps is given twice" in result.stderr


def test_a_recipe_that_is_not_there_is_exit_code_2(tmp_path):
    result = call("train-energy", tmp_path / "no.yaml")
    assert result.exit_code == 2 and "no.yaml cannot be read" in result.stderr


@pytest.mark.parametrize(
    "file", sorted(RECIPES.glob("[!a]*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_recipes_are_read(file, monkeypatch, tmp_path):
    command, classes = CLASSES[file.stem.removesuffix("_continued")]
    # What this machine may lack is switched off; everything else is checked by the dataclasses.
    flags = ["--bf16", "false", "--torch_compile", "false", "--output_dir", str(tmp_path)]
    data, _, args = parse(command, classes, [str(file), *flags])
    assert args.max_steps > 0 and data.length in (256, 1024)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    is_of_the_paper = file.parent.name in ("openwebtext", "text8")
    assert batch * 8 == 512 or not is_of_the_paper


def test_the_three_models_of_the_larger_books_recipes_could_ship(tmp_path):
    def sizes(name):
        command, classes = CLASSES[name]
        flags = ["--bf16", "false", "--torch_compile", "false", "--output_dir", str(tmp_path)]
        return parse(command, classes, [str(RECIPES / "books" / f"{name}.yaml"), *flags])

    tokenizer = text8_tokenizer(256)
    data, chosen, _ = sizes("autoregressive")
    causal = new_model(chosen, data, tokenizer, causal=True)
    _, chosen, _ = sizes("denoiser")
    denoiser = MDLMForMaskedLM.from_causal(causal, cond_dim=chosen.cond_dim)
    _, parts, _ = sizes("energy")
    denoiser.save_pretrained(tmp_path / "denoiser")
    parts.denoiser = str(tmp_path / "denoiser")
    whole = new_energy(parts)
    # bfloat16; the energy head in float32
    assert 2 * (whole.num_parameters() + causal.num_parameters()) < 27.5e6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"max_steps": [3]}, r"sets max_steps to \[3\], but it takes a single value"),
        ({"length": {"a": 1}}, r"sets length to \{'a': 1\}, but it takes a single value"),
        ({"dataset": ["a.txt", "b.txt"]}, "sets dataset to .* but it takes a single value"),
        ({"max_steps": None}, "gives max_steps no value.*which means -1"),
        ({"resume_from_checkpoint": False}, "always goes on from the newest checkpoint.*another output_dir"),
    ],
)
def test_a_line_of_a_recipe_with_another_kind_of_value_is_named(tmp_path, capsys, line, message):
    content = {"dataset": "a.txt", "output_dir": str(tmp_path), "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.dump(content | line))
    with pytest.raises(SystemExit, match="2"):
        parse(*CLASSES["denoiser"], [str(tmp_path / "recipe.yaml")])
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_lists_and_names_with_values_of_a_recipe_reach_the_options_that_take_them(tmp_path):
    content = {"dataset": "a.txt", "output_dir": str(tmp_path), "use_cpu": True, "length": None}
    content |= {"report_to": ["none"], "label_names": ["labels"], "lr_scheduler_kwargs": {"num_cycles": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.dump(content | {"resume_from_checkpoint": True}))

    data, _, args = parse(*CLASSES["denoiser"], [str(tmp_path / "recipe.yaml")])
    assert data.length is None and args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.label_names == ["labels"] and args.resume_from_checkpoint is True


@pytest.mark.parametrize("minutes", ["-1", "nan"])
def test_a_time_limit_is_not_negative(tmp_path, minutes):
    flags = ["--dataset", "a.txt", "--output_dir", str(tmp_path), "--time_limit_minutes", minutes]
    with pytest.raises(ValueError, match=r"time_limit_minutes is .*at least 0"):
        parse(*CLASSES["denoiser"], flags)
