"""The command line: help, files of options, exit codes, conversion and generation."""

import contextlib
import json
import os
import re
import subprocess

import pytest
import torch
import yaml
from program import start
from published import golden, tiny_config
from typer.main import get_command
from typer.testing import CliRunner

from edlm_hf import MDLMForMaskedLM, __version__
from edlm_hf.cli import app
from edlm_hf.modeling.sampler_choice import SAMPLERS
from edlm_hf.tokenization import text8_tokenizer


def call(*arguments, env=None):
    return CliRunner().invoke(app, list(map(str, arguments)), env=env)


def generating(model, prompt, new_tokens, steps):
    """The arguments of `edlm generate` that most tests have."""
    options = {
        "model": model,
        "prompt": prompt,
        "max-new-tokens": new_tokens,
        "max-denoising-steps": steps,
    }
    return ["generate", *(word for name, value in options.items() for word in (f"--{name}", value))]


def commands(group=None, path=()):
    """All commands by what is typed for them, those of training left out."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not name.startswith("train-"):
            yield (*path, name), command


@pytest.fixture
def model(tmp_path):
    """The folder of a denoiser with its tokenizer."""
    tokenizer = text8_tokenizer(12, start_token=False)
    MDLMForMaskedLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def config(tmp_path):
    """A function that writes a file of options."""

    def write(**options):
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
        return tmp_path / "options.yaml"

    return write


def test_help_names_every_command():
    result = call("--help")
    assert result.exit_code == 0
    for command in ("demo", "convert", "generate", "push"):
        assert command in result.output


def test_the_version_is_printed_alone():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"edlm {__version__}\n")


def test_convert_writes_a_model(tmp_path):
    torch.save({"state_dict": golden("model_dit")}, tmp_path / "model.ckpt")
    result = call("convert", tmp_path / "model.ckpt", tmp_path / "out", "--model-length", 24, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["class"] == "MDLMForMaskedLM"
    failed = call("convert", tmp_path / "model.ckpt", tmp_path / "out")
    assert failed.exit_code == 1 and "not an empty folder" in failed.output


def test_generate_fills_masks_and_keeps_the_rest(model):
    arguments = generating(model, "ab[MASK]d", 3, 4)
    result = call(*arguments, "--num-return-sequences", 2, "--seed", 1, "--json")
    assert result.exit_code == 0, result.output
    texts = json.loads(result.stdout)
    assert len(texts) == 2
    assert all(len(text) == 7 and text[:2] == "ab" and text[3] == "d" for text in texts)
    assert call(*arguments, "--num-return-sequences", 2, "--seed", 1, "--json").stdout == result.stdout


def test_what_is_not_said_is_as_the_model_is_set_to_and_texts_begin_with_its_start_token(
    tmp_path,
    monkeypatch,
):
    tokenizer = text8_tokenizer(12, start_token=True)
    network = MDLMForMaskedLM(
        tiny_config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    network.generation_config.update(max_denoising_steps=3, energy_window=0.5)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen, real = [], MDLMForMaskedLM.generate
    monkeypatch.setattr(
        MDLMForMaskedLM,
        "generate",
        lambda *args, **given: seen.append(given) or real(*args, **given),
    )
    result = call("generate", "--model", tmp_path, "--num-return-sequences", 2, "--json")

    assert result.exit_code == 0, result.output
    assert seen[0]["input_ids"].tolist() == [[27], [27]]
    assert not {"max_denoising_steps", "energy_window", "num_candidates", "block_length"} & set(seen[0])
    assert call("generate", "--model", tmp_path, "--max-denoising-steps", 5, "--max-new-tokens", 4).exit_code == 0
    assert seen[1]["max_denoising_steps"] == 5 and seen[1]["max_new_tokens"] == 4


def test_a_sampler_and_its_parameters_are_those_of_generate(model, monkeypatch):
    seen, real = [], MDLMForMaskedLM.generate
    monkeypatch.setattr(
        MDLMForMaskedLM,
        "generate",
        lambda *args, **given: seen.append(given) or real(*args, **given),
    )
    arguments = [*generating(model, "ab", 6, 3), "--json"]
    parameters = ["--sampler-option", "distance=2", "--sampler-option", "score=random"]
    result = call(*arguments, "--sampler", "spaced", *parameters)
    assert result.exit_code == 0, result.output

    given = {name: seen[0].get(name) for name in ("sampler", "distance", "score", "max_denoising_steps")}
    assert given == {"sampler": "spaced", "distance": 2, "score": "random", "max_denoising_steps": 3}
    for option in ("remasking-window=0.2,0.8", "eta=0.1", "corrector_sweeps=1"):
        assert call(*arguments, "--sampler", "remdm", "--sampler-option", option).exit_code == 0
    assert seen[1]["remasking_window"] == (0.2, 0.8) and seen[3]["corrector_sweeps"] == 1


def test_parameters_of_a_sampler_may_be_a_list_in_the_file(model, config):
    flags = ["--sampler", "threshold", "--sampler-option", "threshold=0.5", "--sampler-option", "fill_up=true"]
    arguments = ["generate", "--model", model, "--prompt", "ab", "--max-new-tokens", 6, "--seed", 1, "--json"]
    file = config(sampler="threshold", sampler_option=["threshold=0.5", "fill_up=true"])
    assert call(*arguments, *flags).stdout == call(*arguments, "--config", file).stdout != ""


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_help_names_every_sampler(command):
    help_text = " ".join(call(command, "--help", env={"COLUMNS": "400"}).output.split())
    assert all(f" {name}" in help_text for name in SAMPLERS)


def test_a_text_longer_than_the_model_is_generated_block_after_block(model):
    arguments = [*generating(model, "ab", 20, 2), "--json"]
    too_long = call(*arguments)
    assert too_long.exit_code == 1 and "block_length" in too_long.stderr
    (text,) = json.loads(call(*arguments, "--block-length", 5).stdout)
    assert len(text) == 22 and text.startswith("ab")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("--prompt", "ab[MASK]d"), 8),
        (("--prompt", "ab[MASK]d", "--max-new-tokens", 20, "--block-length", 8), 32),
        (("--prompt", "ab", "--max-new-tokens", 20, "--block-length", 8), 24),
        (("--block-length", 4), 24),
    ],
)
def test_a_bar_of_all_steps_is_shown_on_a_terminal_only(model, options, steps):
    arguments = [
        "generate",
        "--model",
        model,
        *options,
        "--max-denoising-steps",
        4,
        "--num-return-sequences",
        3,
        "--batch-size",
        2,
    ]
    # rich takes this for a terminal
    shown = call(*arguments, "--json", env={"FORCE_COLOR": "1", "COLUMNS": "80"})
    told = re.sub(r"\x1b\[[\d;?]*\w", "", shown.stderr)

    assert re.search(f"text 3 of 3, steps .*{steps}/{steps}", told), told
    assert len(json.loads(shown.stdout)) == 3
    assert "steps" not in call(*arguments).stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_of_the_libraries_are_shown_on_a_terminal_only(tmp_path, model, terminal):
    termios = pytest.importorskip("termios")
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    read, write = os.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(write, (24, 80))
    told, cache = b"", {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    arguments = "evaluate", "--model", model, "--dataset", tmp_path / "text.txt", "--normalize-text8", "--json"

    with start(*arguments, env=cache, stdout=subprocess.PIPE, stderr=write) as program:
        os.close(write)
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(read, 4096):
                told += part
        os.close(read)
        assert json.loads(program.stdout.read())["num_texts"] == 2

    bars = "Loading weights", "Cleaning text", "Tokenizing", "Blocks of 12 tokens", "scoring"
    assert [bar.encode() in told for bar in bars] == [terminal] * 5, told


# ----------------------------------------------------------------------------------------------------- files of options


def test_options_come_from_a_file_and_flags_win(model, config):
    flags = call(*generating(model, "ab", 3, 4), "--seed", 1, "--json")
    options = {
        "model": str(model),
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


# ----------------------------------------------------------------------------------------------------------- exit codes


def refused(result, words):
    """Wrong usage: exit code 2, with `words` somewhere in the box on stderr."""
    told = " ".join(result.stderr.replace("\u2502", " ").split())
    assert result.exit_code == 2 and not result.stdout and words in told, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate",), "Missing option '--model'"),
        (("generate", "--model", "m", "--num-return-sequences", 0), "'--num-return-sequences'"),
        (("generate", "--model", "m", "--seed", 10**30), "'--seed'"),
        (("generate", "--model", "m", "--max-denoising-steps", -3), "'--max-denoising-steps'"),
        (("generate", "--model", "m", "--energy-window", 2), "'--energy-window'"),
        (("generate", "--model", "m", "--device", "abacus"), "There is no device 'abacus' here"),
        (("generate", "--model", "m", "--device", "cpu:7"), "There is no device 'cpu:7' here"),
        (("demo", "--max-denoising-steps", 0), "'--max-denoising-steps'"),
        (
            ("benchmark", "speed", "--output", "o", "--max-denoising-steps", "4,x"),
            "'4,x' is not a list of whole numbers like 16,64",
        ),
        (("evaluate", "--model", "m", "--dataset", "d", "--num-steps", "many"), "'--num-steps'"),
        (("generate", "--model", "m", "--sampler-option", "distance"), "'distance' is not of the form NAME=VALUE"),
        (("write",), "No such command 'write'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, words):
    refused(call(*arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--model", "{}/nothing"), "nothing"),
        (("generate", "--model", "./nothing"), "There is no folder ./nothing"),
        (("generate", "--model", "../a/b"), "a checkpoint that ships: edlm-books"),
        (("generate", "--model", "edlm-books-ar"), "Use MDLMForCausalLM"),
        (("generate", "--model", "{}", "--prompt", "ab", "--max-new-tokens", 99), "99 new ones are more than"),
        (("generate", "--model", "{}/nothing", "--sampler", "gibbs"), "must be one of ancestral, first_hitting"),
        (("generate", "--model", "{}", "--sampler", "spaced", "--sampler-option", "eta=1"), "'spaced' has no eta"),
        (("generate", "--model", "{}", "--sampler-option", "energy_window=0"), "No sampler has energy_window"),
        (("evaluate", "--model", "{}/nothing", "--dataset", "text8"), "nothing"),
        (("evaluate", "--model", "{}", "--dataset", "nothing.txt"), "No corpus 'nothing.txt'"),
        (("convert", "{}/nothing.ckpt", "{}/out"), "nothing.ckpt"),
        (("push", "{}/nothing", "me/x"), "no folder with a model"),
        (("benchmark", "speed", "--output", "{}/out", "--repeats", 0), "repeats"),
        (("benchmark", "quality", "--output", "{}/out", "--model", "{}/nothing", "--dataset", "text8"), "nothing"),
        (
            ("train-energy", "--dataset", "d", "--denoiser", "{}/nothing", "--use_cpu", "--output_dir", "{}/out"),
            "nothing",
        ),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) if isinstance(value, tuple) else "",
)
def test_failures_are_one_line_and_exit_code_1(model, arguments, words):
    result = call(*(str(x).format(model) for x in arguments))
    name = " ".join(arguments[: 2 if arguments[0] == "benchmark" else 1])
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and not result.stdout, result.output
    assert last.startswith(f"edlm {name}: ") and words in last and "Traceback" not in result.stderr


def test_of_several_processes_one_tells_the_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    result = call("convert", tmp_path / "nothing.ckpt", tmp_path / "out")
    assert result.exit_code == 1 and not result.output


def test_mistakes_of_the_code_are_not_hidden(monkeypatch):
    def broken(**options):
        raise RuntimeError("a mistake")

    monkeypatch.setattr("edlm_hf.demo.run_demo", broken)
    result = call("demo")
    assert result.exit_code == 1 and "a mistake" in str(result.exception) and not result.stderr
