"""Options of commands come from a file: flags win, and mistakes are told by name."""

import json

import pytest
import torch
import yaml
from command_line import call, commands, generating, refused
from published import golden

from edlm_hf import MDLMForMaskedLM


@pytest.fixture
def config(tmp_path):
    """A function that writes a file of options."""

    def write(**options):
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
        return tmp_path / "options.yaml"

    return write


def test_parameters_of_a_sampler_may_be_a_list_in_the_file(denoiser_folder, config):
    flags = ["--sampler", "threshold", "--sampler-option", "threshold=0.5", "--sampler-option", "fill_up=true"]
    arguments = ["generate", "--model", denoiser_folder, "--prompt", "ab", "--max-new-tokens", 6, "--seed", 1, "--json"]
    file = config(sampler="threshold", sampler_option=["threshold=0.5", "fill_up=true"])
    assert call(*arguments, *flags).stdout == call(*arguments, "--config", file).stdout != ""


def test_options_come_from_a_file_and_flags_win(denoiser_folder, config):
    flags = call(*generating(denoiser_folder, "ab", 3, 4), "--seed", 1, "--json")
    options = {
        "model": str(denoiser_folder),
        "prompt": "ab",
        "max_new_tokens": 3,
        "max_denoising_steps": 4,
        "seed": 1,
        "json": True,
    }
    assert call("generate", "--config", config(**options)).stdout == flags.stdout != ""

    options = {name.replace("_", "-"): x for name, x in options.items()} | {
        "num-return-sequences": 2,
        "tokenizer": None,
    }
    result = call("generate", "--max-new-tokens", 5, "--config", config(**options))
    assert [len(text) for text in json.loads(result.stdout)] == [7, 7]


def test_positional_arguments_may_stand_in_the_file(tmp_path, config):
    torch.save({"state_dict": golden("model_dit")}, tmp_path / "model.ckpt")
    options = {
        "checkpoint": str(tmp_path / "model.ckpt"),
        "output": str(tmp_path / "out"),
        "ema": False,
    }
    result = call("convert", "--config", config(**options, model_length=24))
    assert result.exit_code == 0, result.output
    assert MDLMForMaskedLM.from_pretrained(tmp_path / "out").config.model_length == 24


@pytest.mark.parametrize(
    ("given", "steps", "data"),
    [
        ({"max_denoising_steps": [4, 8], "dataset": ["a", "b=c"]}, (4, 8), ["a", "b=c"]),
        ({"max_denoising_steps": "4,8", "dataset": "a"}, (4, 8), ["a"]),
        ({"max_denoising_steps": 4, "dataset": ["a"], "nce": None}, (4,), ["a"]),
    ],
)
def test_lists_may_be_lists_in_the_file(config, given, steps, data):
    command = dict(commands())["benchmark", "quality"]
    file = config(output="out", model="m", energy_window=1, **given)
    params = command.make_context("quality", ["--config", str(file), "--num-candidates", "3"]).params
    assert (params["steps"], list(params["data"]), params["window"], params["num_candidates"]) == (steps, data, 1.0, 3)


def test_every_command_takes_a_file_and_prints_json():
    for path, command in commands():
        names = {name for option in command.params for name in option.opts}
        assert {"--config", "--json"} <= names, path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"colour": "red", "max_denoising_steps": 3},
            "sets colour, which edlm generate does not have. It has model, tokenizer,",
        ),
        ({"config": "more.yaml"}, "sets config, which edlm generate does not have"),
        ({"max_denoising_steps": "many"}, "'--max-denoising-steps'"),
        ({"max_denoising_steps": 2.5}, "'--max-denoising-steps'"),
        ({"max_denoising_steps": True}, "sets max-denoising-steps to True, but it must be a text or a number"),
        ({"max_denoising_steps": [1, 2]}, "sets max-denoising-steps to [1, 2], but it must be a text or a number"),
        ({"prompt": {"a": "b"}}, "sets prompt to {'a': 'b'}"),
        ({"json": "yes"}, "sets json to 'yes', but it must be true or false"),
        (["steps"], "holds no lines `option: value`"),
        ("a: b: c", "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_mistakes_in_the_file_are_told_by_name(tmp_path, options, words):
    file = tmp_path / "options.yaml"
    if options is not None:
        file.write_text(options if isinstance(options, str) else yaml.safe_dump(options))
    refused(call("generate", "--model", "m", "--config", file), words)
