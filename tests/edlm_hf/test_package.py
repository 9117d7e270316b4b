import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import edlm_hf

ROOT = Path(__file__).parents[2]


def package_names(lines):
    names = [re.match(r"[\w.-]+", line) for line in lines if not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names}


def test_import_leaves_heavy_packages_out():
    heavy = ["transformers.trainer", "peft", "datasets", "evaluate", "matplotlib", "gradio"]
    code = f"import sys, edlm_hf; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_version_is_that_of_the_distribution():
    assert edlm_hf.__version__ == version("edlm-hf")


def test_every_requirement_has_a_tested_version():
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    assert package_names(requires("edlm-hf")) <= package_names(pinned)


def test_space_runs_on_the_tested_gradio():
    version = re.search(r"^sdk_version: (.+)$", (ROOT / "space" / "README.md").read_text(), re.MULTILINE)[1]
    assert f"gradio=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
