import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_the_folder_of_a_clone_is_imported_where_the_installed_package_is_not_this_clone():
    code = """
import sys

sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import edlm_hf.modeling.noise

print(edlm_hf.modeling.noise.__file__)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert Path(result.stdout.strip()) == ROOT / "modeling" / "noise.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this clone, built without a network, without a warning."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "warn" not in (result.stdout + result.stderr).lower()
    (wheel,) = folder.iterdir()
    return wheel


def test_the_wheel_has_the_package_and_the_modelling_code_and_nothing_else(wheel):
    files = [file for folder in ("edlm_hf", "modeling") for file in (ROOT / folder).rglob("*.*") if file.is_file()]
    names = [file.relative_to(ROOT).as_posix() for file in files if file.suffix != ".pyc"]
    expected = {f"edlm_hf/{name}" if name.startswith("modeling/") else name for name in names}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected and len(packed) > 150
    assert wheel.stat().st_size < 50e6


@pytest.mark.parametrize("where", ["in the clone", "elsewhere"])
def test_an_installed_wheel_is_imported_in_the_clone_and_elsewhere(wheel, tmp_path, where):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import edlm_hf.modeling.noise; print(edlm_hf.__file__, edlm_hf.modeling.noise.__file__, sep='\\n')"
    folder = ROOT if where == "in the clone" else tmp_path
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder, env=environment
    )
    root = ROOT if where == "in the clone" else tmp_path / "installed"
    assert all(Path(file).is_relative_to(root) for file in result.stdout.split())


def test_version_is_that_of_the_distribution():
    assert edlm_hf.__version__ == version("edlm-hf")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints/floors.txt", "constraints/newest.txt"])
def test_every_requirement_has_a_tested_version(file):
    pinned = (ROOT / file).read_text().splitlines()
    assert all(line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    assert package_names(requires("edlm-hf")) <= package_names(pinned)


def test_every_requirement_begins_at_the_oldest_tested_version():
    pinned = (ROOT / "constraints" / "floors.txt").read_text().splitlines()
    oldest = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pinned)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, sum(project["optional-dependencies"].values(), project["dependencies"])):
        name = canonicalize_name(requirement.name)
        assert str(requirement.specifier) == f">={oldest[name]}", f"{requirement} is tested from {oldest[name]} on"


def test_space_runs_on_the_tested_gradio():
    version = re.search(r"^sdk_version: (.+)$", (ROOT / "space" / "README.md").read_text(), re.MULTILINE)[1]
    assert f"gradio=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_nothing_here_unpickles_or_evaluates_what_others_wrote():
    runs_code = r"\btorch\.load\((?!.*weights_only=True\))|\bpickle\.loads?\(|Unpickler\(pickle"
    runs_code += r"|weights_only=False|allow_pickle=True"
    runs_code += r"|\byaml\.(unsafe_|full_)?load\(|(?<![\w.])(eval|exec)\("
    files = [file for folder in ("edlm_hf", "modeling", "recipes", "space") for file in (ROOT / folder).rglob("*.py")]
    found = {str(file.relative_to(ROOT)): re.findall(runs_code, file.read_text()) for file in files}
    assert len(files) > 60 and not {file: lines for file, lines in found.items() if lines}
