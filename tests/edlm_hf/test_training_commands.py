"""The training commands: recipes and flags, from text to a model that generates, in one go or in several."""

import json
import random
import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from edlm_hf import MDLMConfig, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.commands import train
from edlm_hf.commands.new_models import new_energy, new_model
from edlm_hf.commands.run_recipe import RECIPE, check_same_run
from edlm_hf.commands.training_data import choose_tokenizer, load_sets
from edlm_hf.commands.training_flags import (
    DataArguments,
    DraftModelArguments,
    EnergyModelArguments,
    ModelArguments,
)
from edlm_hf.commands.training_recipe import parse
from edlm_hf.loading import load_denoiser
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import (
    DraftArguments,
    EDLMTrainingArguments,
    EnergyArguments,
    MaskedDiffusionArguments,
    MaskedDiffusionTrainer,
)

RECIPES = Path(__file__).parents[2] / "recipes"
CLASSES = {
    "denoiser": (train.train_denoiser, (DataArguments, ModelArguments, MaskedDiffusionArguments)),
    "autoregressive": (train.train_autoregressive, (DataArguments, ModelArguments, EDLMTrainingArguments)),
    "energy": (train.train_energy, (DataArguments, EnergyModelArguments, EnergyArguments)),
    "drafts": (train.train_drafts, (DataArguments, DraftModelArguments, DraftArguments)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path):
    """A recipe on a made-up text: a function that writes it with changes."""
    words, draw = ["the", "cat", "sat", "on", "a", "mat"], random.Random(0)
    (tmp_path / "train.txt").write_text(" ".join(draw.choices(words, k=2000)))
    (tmp_path / "validation.txt").write_text(" ".join(draw.choices(words, k=300)))
    common = {
        "dataset": str(tmp_path / "train.txt"), "eval_dataset": str(tmp_path / "validation.txt"),
        "normalize_text8": True, "style": "crop", "start_token": True, "length": 16, "eval_blocks": 20,
        "max_steps": 12, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "logging_steps": 4,
        "save_steps": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    sizes = {"hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "dropout": 0.0}

    def write(kind, **changes):
        file = tmp_path / f"{kind}.yaml"
        values = common | (sizes if kind != "energy" else {}) | {"output_dir": str(tmp_path / kind)} | changes
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def result_of(call_result) -> dict:
    assert call_result.exit_code == 0, call_result.output
    return json.loads(call_result.stdout)  # nothing else is on stdout


def test_text_to_a_model_with_an_energy_in_three_commands(tmp_path, recipe):
    denoiser = result_of(call("train-denoiser", recipe("denoiser"), "--json"))
    assert denoiser["finished"]
    assert denoiser["steps"] == 12
    assert 0 < denoiser["eval_bits_per_character"] < 5
    causal = result_of(call("train-autoregressive", recipe("autoregressive"), "--json"))
    assert 0 < causal["eval_bits_per_character"] < 5

    card = (tmp_path / "autoregressive" / "README.md").read_text()
    assert f"| bits_per_character | {causal['eval_bits_per_character']:.6g} |" in card
    assert "train.txt" in card
    file = recipe("energy", denoiser=str(tmp_path / "denoiser"), energy="lora", adapter_rank=2)
    energy = result_of(call("train-energy", file, "--max_steps", 4, "--json"))
    assert energy["steps"] == 4
    assert energy["denoiser_bytes"] == denoiser["bytes"]
    assert energy["energy_overhead"] <= 1.1
    assert energy["peak_memory_bytes"] > 0 and "eval_sampler_bound_change" in energy

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "energy")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "energy")
    assert (model.config.energy_weights, model.config.energy_adapter_rank, model.config.bos_token_id) == (
        "shared", 2, tokenizer.bos_token_id,
    )  # fmt: skip
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "autoregressive").config.causal

    start = torch.tensor([[tokenizer.bos_token_id]])
    rows = model.generate(start, max_new_tokens=15, max_denoising_steps=4, num_candidates=2)
    assert rows.shape == (1, 16) and len(tokenizer.decode(rows[0], skip_special_tokens=True)) == 15


def test_a_denoiser_starts_from_the_autoregressive_baseline(tmp_path, recipe):
    call("train-autoregressive", recipe("autoregressive", max_steps=40))
    start = {"max_steps": 1, "learning_rate": 0.0, "ema_decay": 0.0}
    new = result_of(call("train-denoiser", recipe("denoiser", **start), "--json"))
    causal = str(tmp_path / "autoregressive")
    adapted = result_of(call("train-denoiser", recipe("denoiser", **start), "--json", "--from_causal", causal,
                             "--output_dir", tmp_path / "adapted"))  # fmt: skip
    assert adapted["parameters"] == new["parameters"]
    assert adapted["eval_loss"] < new["eval_loss"] - 0.1

    both = call("train-denoiser", recipe("denoiser"), "--from_causal", causal, "--model", causal)
    assert both.exit_code == 1 and "give one of them" in both.stderr


def test_a_denoiser_goes_on_from_the_one_in_a_composite_that_ships():
    denoiser = load_denoiser("edlm-books")
    assert type(denoiser) is MDLMForMaskedLM and denoiser.config.hidden_dim == 192


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


def test_blocks_and_tokenizer_are_those_of_the_model_to_start_from(tmp_path, recipe):
    file = tmp_path / "short.yaml"
    text = {
        "dataset": str(tmp_path / "train.txt"),
        "style": "crop",
        "output_dir": str(tmp_path / "short"),
    }
    recipe("denoiser")  # the text
    file.write_text(
        yaml.safe_dump(
            text
            | {
                "max_steps": 1,
                "length": 32,
                "use_cpu": True,
                "report_to": "none",
            }
        )
    )

    small = "--per_device_train_batch_size", 4, "--eval_blocks", 2, "--ema_decay", 0, "--json"
    for name in ("denoiser", "model"):
        made = result_of(call("train-energy", file, f"--{name}", "edlm-books", "--output_dir", tmp_path / name, *small))
        assert made["steps"] == 1
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        assert tokenizer.mask_token_id == model.config.mask_token_id == 4095

    wrong = call("train-energy", file, "--denoiser", "edlm-books", "--tokenizer", "text8", "--style", "wrap")
    assert wrong.exit_code == 1 and "has id 27, but the model masks with id 4095" in wrong.stderr
    both = call("train-energy", file, "--denoiser", "edlm-books", "--model", "edlm-books")
    assert both.exit_code == 1 and "either denoiser" in both.stderr


def test_the_last_twentieth_of_a_file_is_for_evaluation_unless_another_is_given(tmp_path, recipe):
    file = recipe("denoiser", eval_dataset=None, eval_blocks=None)
    data, *_ = parse(train.train_denoiser, CLASSES["denoiser"][1], [file])
    training, held_out = load_sets(data, choose_tokenizer(data, None))
    data.eval_dataset = data.dataset
    whole, again = load_sets(data, choose_tokenizer(data, None))
    assert len(held_out) == len(whole) // 20 > 0
    assert len(training) + len(held_out) == len(whole) == len(again)
    assert (held_out[0]["input_ids"] == whole[len(training)]["input_ids"]).all()

    data.eval_dataset, data.streaming = None, True
    with pytest.raises(ValueError, match="nothing to evaluate on: give --eval_dataset"):
        load_sets(data, choose_tokenizer(data, None))
    assert call("train-denoiser", file, "--length", 0).exit_code == 1


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train",), None),
    ],
)
def test_a_folder_is_evaluated_on_validation_then_test_then_its_last_rows(tmp_path, recipe, names, split):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / f"{name}.txt").write_text("abc"[number] * 20 * 16)

    file = recipe("denoiser", dataset=str(folder), eval_dataset=None, eval_blocks=None)
    data, *_ = parse(train.train_denoiser, CLASSES["denoiser"][1], [file])
    tokenizer = choose_tokenizer(data, None)
    training, held_out = load_sets(data, tokenizer)
    letters = {"validation": "b", "test": "abc"[len(names) - 1], None: "a"}
    (letter,) = set(tokenizer.decode(held_out[0]["input_ids"][1:]).replace(" ", ""))
    assert letter == letters[split]
    assert (len(held_out) == 1) == (split is None)


def test_a_split_that_plain_files_do_not_have_is_refused(recipe):
    file = recipe("denoiser", eval_dataset=None)
    result = call("train-denoiser", file, "--eval_split", "nosuch")
    assert result.exit_code == 1 and "have no splits" in result.stderr


def test_a_model_is_saved_before_its_evaluation_can_fail(tmp_path, recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no evaluation today")

    monkeypatch.setattr(MaskedDiffusionTrainer, "evaluate", fail)
    result = call("train-denoiser", recipe("denoiser", save_strategy="no", max_steps=2))
    assert result.exit_code == 1 and "no evaluation today" in result.stderr
    model = MDLMForMaskedLM.from_pretrained(tmp_path / "denoiser")
    assert (tmp_path / "denoiser" / "trainer_state.json").exists() and model.config.n_blocks == 2


def test_old_names_of_flags_and_keys_are_taken_and_told(recipe, capsys):
    file = recipe("energy", denoiser="somewhere", denoising_steps=4)
    *_, args = parse(*CLASSES["energy"], [file, "--eval_denoising_steps", "3"])
    assert (args.max_denoising_steps, args.eval_max_denoising_steps) == (4, 3)

    told = capsys.readouterr().err
    assert "edlm train-energy: old names, which work until 0.3.0: denoising_steps (now max_denoising_steps)." in told
    assert "eval_denoising_steps (now eval_max_denoising_steps)" in told

    *_, args = parse(*CLASSES["denoiser"], [recipe("denoiser"), "--eval-noise-samples=4"])
    assert args.eval_num_samples == 4


def test_a_run_is_known_by_the_old_names_of_its_options(tmp_path):
    (tmp_path / RECIPE).write_text('{"denoising_steps": 4}')
    with pytest.raises(ValueError, match="max_denoising_steps is 8, there 4"):
        check_same_run(str(tmp_path), {"max_denoising_steps": 8})
    check_same_run(str(tmp_path), {"max_denoising_steps": 4})


def test_failures_are_told_in_one_line(tmp_path, recipe):
    missing = call("train-denoiser", recipe("denoiser", dataset=str(tmp_path / "nothing.txt")))
    assert missing.exit_code == 1
    assert "edlm train-denoiser: No corpus" in missing.stderr
    assert not missing.stdout


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


def test_a_recipe_that_is_not_there_is_exit_code_2(tmp_path):
    result = call("train-energy", tmp_path / "no.yaml")
    assert result.exit_code == 2 and "no.yaml cannot be read" in result.stderr


@pytest.mark.parametrize("command", train.COMMANDS)
def test_help_lists_the_flags(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "--learning_rate" in result.output
    assert "--dataset" in result.output


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


def test_an_energy_of_few_blocks_starts_from_the_first_ones_of_the_denoiser(tmp_path):
    torch.manual_seed(0)
    config = MDLMConfig(
        vocab_size=13,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=3,
        n_heads=2,
        model_length=12,
    )
    denoiser = MDLMForMaskedLM(config)
    denoiser.save_pretrained(tmp_path)
    model = new_energy(EnergyModelArguments(str(tmp_path), energy_blocks=1))
    assert len(model.energy_model.blocks) == 1 and len(model.denoiser.backbone.blocks) == 3

    ours, theirs = model.energy_model.blocks[0], denoiser.backbone.blocks[0]
    assert torch.equal(ours.attn_qkv.weight, theirs.attn_qkv.weight)
    for energy, count in (("full", 4), ("head", 1)):
        with pytest.raises(ValueError, match=f"energy_blocks is {count} with energy='{energy}'"):
            new_energy(EnergyModelArguments(str(tmp_path), energy=energy, energy_blocks=count))


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
