"""The training commands: recipes and flags, from text to a model that generates, in one go or in several."""

import json
import random
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from edlm_hf.cli import app
from edlm_hf.training import commands
from edlm_hf.training.commands import DataArguments, EnergyModelArguments, ModelArguments, new_energy, parse

RECIPES = Path(__file__).parents[2] / "recipes"
CLASSES = {
    "denoiser": ("train-denoiser", (DataArguments, ModelArguments, commands.MaskedDiffusionArguments)),
    "autoregressive": ("train-autoregressive", (DataArguments, ModelArguments, commands.EDLMTrainingArguments)),
    "energy": ("train-energy", (DataArguments, EnergyModelArguments, commands.EnergyArguments)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path):
    """A recipe on a made-up text; returns a function that writes it with changes."""
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
    assert denoiser["finished"] and denoiser["steps"] == 12 and 0 < denoiser["eval_bits_per_character"] < 5
    causal = result_of(call("train-autoregressive", recipe("autoregressive"), "--json"))
    assert 0 < causal["eval_bits_per_character"] < 5
    card = (tmp_path / "autoregressive" / "README.md").read_text()
    assert f"| bits_per_character | {causal['eval_bits_per_character']:.6g} |" in card and "train.txt" in card
    file = recipe("energy", denoiser=str(tmp_path / "denoiser"), energy="lora", adapter_rank=2)
    energy = result_of(call("train-energy", file, "--max_steps", 4, "--json"))
    assert energy["steps"] == 4 and energy["denoiser_bytes"] == denoiser["bytes"] and energy["energy_overhead"] <= 1.1
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
    assert adapted["parameters"] == new["parameters"] and adapted["eval_loss"] < new["eval_loss"] - 0.1
    both = call("train-denoiser", recipe("denoiser"), "--from_causal", causal, "--model", causal)
    assert both.exit_code == 1 and "give one of them" in both.stderr


def test_a_denoiser_goes_on_from_the_one_in_a_composite_that_ships():
    denoiser = commands.load_denoiser("edlm-books")
    assert type(denoiser) is commands.edlm_hf.MDLMForMaskedLM and denoiser.config.hidden_dim == 192


def test_a_command_that_stops_at_its_time_limit_goes_on_when_repeated(recipe):
    arguments = "train-denoiser", recipe("denoiser"), "--json"
    parts = result_of(call(*arguments, "--time_limit_minutes", 0))
    assert (parts["finished"], parts["steps"], parts["max_steps"]) == (False, 1, 12) and "eval_loss" not in parts
    whole = result_of(call(*arguments))
    assert whole["finished"] and whole["steps"] == 12
    other = result_of(call(*arguments, "--output_dir", recipe("denoiser") + ".whole"))
    assert other["eval_loss"] == whole["eval_loss"]


def test_failures_are_told_in_one_line(tmp_path, recipe):
    missing = call("train-denoiser", recipe("denoiser", dataset=str(tmp_path / "nothing.txt")))
    assert missing.exit_code == 1 and "edlm train-denoiser: No corpus" in missing.stderr and not missing.stdout


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


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_lists_the_flags(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and "--learning_rate" in result.output and "--dataset" in result.output


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
    assert batch * 8 == 512 or file.parent.name.startswith("books")


def test_the_three_models_of_the_larger_books_recipes_could_ship(tmp_path):
    def sizes(name):
        command, classes = CLASSES[name]
        flags = ["--bf16", "false", "--torch_compile", "false", "--output_dir", str(tmp_path)]
        return parse(command, classes, [str(RECIPES / "books" / f"{name}.yaml"), *flags])

    tokenizer = commands.text8_tokenizer(256)
    data, chosen, _ = sizes("autoregressive")
    causal = commands.new_model(chosen, data, tokenizer, causal=True)
    _, chosen, _ = sizes("denoiser")
    denoiser = commands.edlm_hf.MDLMForMaskedLM.from_causal(causal, cond_dim=chosen.cond_dim)
    _, parts, _ = sizes("energy")
    denoiser.save_pretrained(tmp_path / "denoiser")
    parts.denoiser = str(tmp_path / "denoiser")
    whole = new_energy(parts)
    assert 2 * (whole.num_parameters() + causal.num_parameters()) < 27.5e6  # bfloat16; the energy head in float32


def test_an_energy_of_few_blocks_starts_from_the_first_ones_of_the_denoiser(tmp_path):
    torch.manual_seed(0)
    config = commands.edlm_hf.MDLMConfig(
        vocab_size=13, hidden_dim=16, cond_dim=8, n_blocks=3, n_heads=2, model_length=12
    )
    denoiser = commands.edlm_hf.MDLMForMaskedLM(config)
    denoiser.save_pretrained(tmp_path)
    model = new_energy(EnergyModelArguments(str(tmp_path), energy_blocks=1))
    assert len(model.energy_model.blocks) == 1 and len(model.denoiser.backbone.blocks) == 3
    ours, theirs = model.energy_model.blocks[0], denoiser.backbone.blocks[0]
    assert torch.equal(ours.attn_qkv.weight, theirs.attn_qkv.weight)
    for energy, count in (("full", 4), ("head", 1)):
        with pytest.raises(ValueError, match=f"energy_blocks is {count} with energy='{energy}'"):
            new_energy(EnergyModelArguments(str(tmp_path), energy=energy, energy_blocks=count))
