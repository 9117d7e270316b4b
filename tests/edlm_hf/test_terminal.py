"""Texts of anybody, on the way to a terminal: tokens, file names, options, and what messages quote."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess

import pytest
import torch
import yaml
from program import start
from published import tiny_config, tiny_denoiser
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from edlm_hf import MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.streaming import DiffusionStreamer, TerminalDiffusionStreamer
from edlm_hf.terminal import QuotesSafely, visible
from edlm_hf.visualization import generation_html

TITLE = "\x1b]0;title\x07"
HOSTILE = [TITLE, "\x1b[2J", "\x9b2J", "\x08", "\r", "\x7f", "\u202e", "\x00", "a", "\n", "é", "\t"]
OBEYED = {chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x202E)} - set("\n\t")


def hostile_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel(
            {text: i for i, text in enumerate([*HOSTILE, "[MASK]"])},
            unk_token="[MASK]",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")


@pytest.fixture
def model(tmp_path):
    """The folder of a denoiser whose every text is full of what a terminal obeys."""
    MDLMForMaskedLM(tiny_config(vocab_size=13)).save_pretrained(tmp_path / "model")
    hostile_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_lines_letters_and_tabs_stay_and_the_rest_becomes_symbols():
    assert visible("naïve\r\n\tשלום 漢字 😀") == "naïve\n\tשלום 漢字 😀"
    assert visible(TITLE + "\x1b[2J") == "␛]0;title␇␛[2J"
    shown = visible("".join(map(chr, range(0x2070))))
    assert not OBEYED & set(shown) and len(shown) == 0x2070


@pytest.mark.parametrize("terminal", [True, False])
def test_streamed_tokens_steer_no_terminal_and_stay_as_they_are_in_a_file(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=300)
    streamer = TerminalDiffusionStreamer(hostile_tokenizer(), console=console)
    streamer.put(torch.tensor([0, 1]))
    streamer.put_draft(torch.arange(12))
    streamer.put(torch.arange(12))
    streamer.end()
    whole = "".join(HOSTILE)

    if terminal:
        assert "\x1b]" not in file.getvalue()
        assert not {"\x9b", "\x07", "\x08", "\u202e"} & set(file.getvalue())
        assert visible(whole) in file.getvalue()
    else:
        assert file.getvalue() == f"{HOSTILE[0]}{HOSTILE[1]}{whole}\n"


def test_a_streamer_of_the_user_is_shown_what_steers_nothing():
    seen = []

    class Mine(DiffusionStreamer):
        def show(self, finished, draft):
            seen.append(finished + draft)

        def close(self, text):
            pass

    streamer = Mine(hostile_tokenizer())
    streamer.put(torch.tensor([0]))
    streamer.put_draft(torch.arange(12))
    assert len(seen) == 2 and not OBEYED & set("".join(seen))


def on_a_terminal(*arguments) -> str:
    """What `edlm` writes, results and messages, where both are a terminal."""
    read, write = os.openpty()
    written = b""
    with start(*arguments, stdout=write, stderr=write, env={"TERM": "dumb", "NO_COLOR": "1"}) as program:
        os.close(write)
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(read, 4096):
                written += part
        os.close(read)

    assert program.returncode == 0, written
    return written.decode()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_generated_texts_steer_no_terminal_and_are_piped_as_they_are(model):
    arguments = (
        "generate",
        "--model",
        model,
        "--num-return-sequences",
        4,
        "--max-new-tokens",
        12,
        "--max-denoising-steps",
        2,
        "--seed",
        0,
    )
    shown = on_a_terminal(*arguments)
    assert not {TITLE, "\x9b", "\x08", "\u202e"} & set(shown)
    assert "\x1b[2J" not in shown
    assert TITLE not in shown

    with start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        piped = program.stdout.read().decode()
    texts = json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)
    assert piped == "\n\n".join(texts) + "\n" and OBEYED & set(piped)
    assert visible(piped).strip() in shown.replace("\r\n", "\n")


def test_messages_quote_without_steering(tmp_path):
    def told(*arguments) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code in (1, 2) and result.stderr
        return result.stderr

    (tmp_path / f"{TITLE}.ckpt").write_text("no archive")
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({f"steps{TITLE}": 3}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({f"steps{TITLE}": 3}))
    for message in (
        told("convert", tmp_path / f"{TITLE}.ckpt", tmp_path / "out"),
        told("push", tmp_path / TITLE, "me/x"),
        told("generate", "--model", tmp_path / TITLE, "--prompt", "a"),
        told("generate", "--model", tmp_path, f"--{TITLE}"),
        told("generate", "--config", tmp_path / "options.yaml"),
        told("train-denoiser", tmp_path / "recipe.yaml"),
        told("train-denoiser", "--output_dir", tmp_path / "out", "--dataset", "x", f"--{TITLE}"),
        told("train-denoiser", "--output_dir", tmp_path / "out", "--dataset", "x", "--max_steps", TITLE),
    ):
        assert not (OBEYED - {"\r"}) & set(message), message


def test_names_of_weights_in_a_damaged_file_do_not_steer_the_terminal(model):
    weights = load_file(model / "model.safetensors") | {f"{TITLE}\x1b[2J{i}": torch.zeros(1) for i in range(2)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    arguments = "generate", "--model", model, "--max-new-tokens", 2
    with start(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        told = program.stderr.read().decode()
    assert program.returncode == 1 and len(told.splitlines()) == 1
    assert "x1b]0;title" in told and not OBEYED & set(told)


def test_the_log_of_a_library_quotes_without_steering_and_keeps_its_colours():
    record = logging.makeLogRecord(
        {
            "msg": "\x1b[31m%s is unexpected\x1b[0m",
            "args": (f"{TITLE}\x1b[2J",),
        }
    )
    assert QuotesSafely().filter(record)
    told = record.getMessage()
    assert "␛]0;title␇␛[2J is unexpected" in told and told.startswith("\x1b[31m")
    assert not OBEYED & set(re.sub(r"\x1b\[[\d;]*m", "", told))


def test_pages_show_control_characters_as_symbols():
    rows = torch.arange(12).unsqueeze(0)
    output = EDLMGenerationOutput(sequences=rows, history=(torch.full_like(rows, 12), rows))
    page = generation_html(output, hostile_tokenizer())
    assert not OBEYED & set(page) and "␛[2J" in page


def test_names_of_weights_do_not_steer(tmp_path):
    tiny_denoiser().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {f"{TITLE}.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        MDLMForMaskedLM.from_pretrained(tmp_path)
    assert "x1b]0;title" in str(caught.value) and not OBEYED & set(str(caught.value))
