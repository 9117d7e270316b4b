"""The command line: its help, its version, and a conversion."""

import json

import pytest
import torch
from command_line import call
from published import golden

from edlm_hf import __version__
from edlm_hf.modeling.sampler_choice import SAMPLERS


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


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_help_names_every_sampler(command):
    help_text = " ".join(call(command, "--help", env={"COLUMNS": "400"}).output.split())
    assert all(f" {name}" in help_text for name in SAMPLERS)
