"""The table of layers in docs/design.md: it has every source file, and no file imports from a layer below its own."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling", "edlm_hf")
LONGEST_FILE = 450  # lines, in the folders that say what the method is


def read_table() -> dict[str, int]:
    """The layer of every file that the table names, alone or by its folder: 0 for the highest row."""
    page = (ROOT / "docs" / "design.md").read_text()
    table = page[page.index("## Layers") : page.index("## What is where")]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]

    layers = {}
    for number, row in enumerate(rows):
        for place in re.findall(r"`((?:modeling|edlm_hf)/[^`]*)`", row.split("|")[3]):
            files = [ROOT / place] if place.endswith(".py") else list((ROOT / place).rglob("*.py"))
            for file in files:
                name = file.relative_to(ROOT).as_posix()
                assert file.exists() and name not in layers, name
                layers[name] = number

    return layers


def imports_of(file: Path) -> set[str]:
    """The files of this project that a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            # `from .x import y` is in modeling/ alone, which is flat
            module = f"edlm_hf.modeling.{node.module or ''}" if node.level else node.module
            modules |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}

    ours = {module for module in modules if module.startswith("edlm_hf.")}
    paths = {module.replace("edlm_hf.modeling", "modeling").replace(".", "/") + ".py" for module in ours}
    return {path for path in paths if (ROOT / path).exists()}


LAYERS = read_table()
# The package itself only gathers names
SOURCES = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.parent.name != "assets"]
NAMES = [file.relative_to(ROOT).as_posix() for file in SOURCES]
GATHERING = {"modeling/__init__.py", "edlm_hf/__init__.py"}


def test_every_source_file_has_a_layer():
    assert len(NAMES) > 150
    assert set(NAMES) - GATHERING == set(LAYERS)


def test_imports_come_from_the_own_layer_or_from_those_above():
    upward = []
    for file, name in zip(SOURCES, NAMES, strict=True):
        if name not in GATHERING:
            upward += [f"{name} imports {other}" for other in imports_of(file) if LAYERS[other] > LAYERS[name]]
    assert not upward


def test_an_import_of_a_lower_layer_would_be_found(tmp_path):
    (tmp_path / "x.py").write_text("def f():\n    from .generation_edlm import y\n    import edlm_hf.cli\n")
    assert imports_of(tmp_path / "x.py") == {"modeling/generation_edlm.py", "edlm_hf/cli.py"}


@pytest.mark.parametrize("folder", ["modeling", "edlm_hf/evaluation"])
def test_no_file_of_the_method_is_long(folder):
    lengths = {file.name: len(file.read_text().splitlines()) for file in (ROOT / folder).glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
