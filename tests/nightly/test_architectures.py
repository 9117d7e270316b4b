"""Every language model of transformers is right or refused, and docs/architectures.md says which."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import architectures
import pytest
from python_path import python_path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of all types, from a process of its own without a network."""
    folder = tmp_path_factory.mktemp("architectures")
    here = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, architectures.__file__, str(folder / "found.json")]
    environment = os.environ | here | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def test_no_type_is_wrong(found):
    wrong = []
    for kind, results in found.items():
        for model_type, parts in results.items():
            wrong += [f"{kind} {model_type}: {part['note']}" for part in parts.values() if part["outcome"] == "wrong"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("model_type", architectures.HYBRIDS)
def test_energies_of_hybrids_are_right(found, model_type):
    if model_type not in found["causal"]:
        pytest.skip("this version of transformers has no such type")
    assert found["causal"][model_type]["energy"] == {"outcome": "right", "note": ""}


@pytest.mark.parametrize("model_type", architectures.PADDING_BLIND)
def test_denoisers_that_see_padding_run_without_it(found, model_type):
    result = found["masked"][model_type]["denoiser"]
    if result["outcome"] == "not tried":
        pytest.skip(result["note"])
    assert result == {"outcome": "right", "note": "rows without padding"}


def test_the_page_has_the_results_of_today(found):
    """With another version of torch or transformers the page is that of the tested ones."""
    tested = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    other = [name for name in ("torch", "transformers") if version(name).partition("+")[0] != tested[name]]
    if other:
        pytest.skip(f"not the tested version: {', '.join(other)}")
    assert architectures.PAGE.read_text(encoding="utf-8") == architectures.page(found), "run `make architectures`"
