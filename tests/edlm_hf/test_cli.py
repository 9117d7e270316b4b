"""The command line: help, conversion and generation."""

import json

import torch
from published import golden, tiny_config
from typer.testing import CliRunner

from edlm_hf import MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.tokenization import text8_tokenizer


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_help_names_every_command():
    result = call("--help")
    assert result.exit_code == 0
    for command in ("demo", "convert", "generate", "push"):
        assert command in result.output


def test_convert_writes_a_model(tmp_path):
    torch.save({"state_dict": golden("model_dit")}, tmp_path / "model.ckpt")
    result = call("convert", tmp_path / "model.ckpt", tmp_path / "out", "--model-length", 24, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["class"] == "MDLMForMaskedLM"
    failed = call("convert", tmp_path / "model.ckpt", tmp_path / "out")
    assert failed.exit_code == 1 and "not an empty folder" in failed.output


def test_generate_fills_masks_and_keeps_the_rest(tmp_path):
    tokenizer = text8_tokenizer(12, start_token=False)
    MDLMForMaskedLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = ["generate", "--model", tmp_path, "--prompt", "ab[MASK]d", "--max-new-tokens", 3, "--steps", 4]
    result = call(*arguments, "--samples", 2, "--seed", 1, "--json")
    assert result.exit_code == 0, result.output
    texts = json.loads(result.stdout.splitlines()[-1])
    assert len(texts) == 2 and all(len(text) == 7 and text[:2] == "ab" and text[3] == "d" for text in texts)
    assert call(*arguments, "--samples", 2, "--seed", 1, "--json").stdout == result.stdout
