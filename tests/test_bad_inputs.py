"""Every bad input of docs/bad_inputs.md, with the message it gets: the page is made by what runs here."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import bad_inputs
import pytest
from python_path import python_path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SECTIONS = {section.title: section for section in bad_inputs.SECTIONS}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Answers to all lines, by section, from a process of its own without a network."""
    folder = tmp_path_factory.mktemp("answers")
    here = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    here |= {"COLUMNS": "500", "PYTHONPATH": python_path()}
    command = [sys.executable, bad_inputs.__file__, folder / "answers.json"]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("title", SECTIONS)
def test_bad_input_is_a_value_error_or_one_line_of_a_command(answers, title):
    allowed = {"exit 1", "exit 2"} if SECTIONS[title].commands else {"ValueError"}
    other = [f"{answer['line']}: {answer['kind']} {answer['message']}" for answer in answers[title]]
    wrong = [text for text, answer in zip(other, answers[title], strict=True) if answer["kind"] not in allowed]
    assert not wrong, "\n".join(wrong)
    assert all(len(answer["message"].split()) >= 3 for answer in answers[title])


def test_the_page_has_the_messages_of_today(answers):
    """Where another release words its part differently, the page is that of the tested versions."""
    tested = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    names = "torch", "transformers", "typer", "datasets"
    if other := [name for name in names if version(name).partition("+")[0] != tested[name]]:
        pytest.skip(f"not the tested version: {', '.join(other)}")
    assert bad_inputs.PAGE.read_text(encoding="utf-8") == bad_inputs.page(answers), "run `make bad-inputs`"
