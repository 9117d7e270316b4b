"""Bars of commands and of the libraries are shown on a terminal only."""

import contextlib
import json
import os
import re
import subprocess

import pytest
from command_line import call
from program import start


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("--prompt", "ab[MASK]d"), 8),
        (("--prompt", "ab[MASK]d", "--max-new-tokens", 20, "--block-length", 8), 32),
        (("--prompt", "ab", "--max-new-tokens", 20, "--block-length", 8), 24),
        (("--block-length", 4), 24),
    ],
)
def test_a_bar_of_all_steps_is_shown_on_a_terminal_only(denoiser_folder, options, steps):
    arguments = [
        "generate",
        "--model",
        denoiser_folder,
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
def test_bars_of_the_libraries_are_shown_on_a_terminal_only(tmp_path, denoiser_folder, terminal):
    termios = pytest.importorskip("termios")
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    read, write = os.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(write, (24, 80))
    told, cache = b"", {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    arguments = (
        "evaluate",
        "--model",
        denoiser_folder,
        "--dataset",
        tmp_path / "text.txt",
        "--normalize-text8",
        "--json",
    )

    with start(*arguments, env=cache, stdout=subprocess.PIPE, stderr=write) as program:
        os.close(write)
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(read, 4096):
                told += part
        os.close(read)
        assert json.loads(program.stdout.read())["num_texts"] == 2

    bars = "Loading weights", "Cleaning text", "Tokenizing", "Blocks of 12 tokens", "scoring"
    assert [bar.encode() in told for bar in bars] == [terminal] * 5, told
