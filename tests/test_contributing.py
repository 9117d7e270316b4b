"""The table of CONTRIBUTING.md leads from every source file to its tests."""

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (`(?:modeling|edlm_hf)/.*) \| (.*) \|$",
    (ROOT / "CONTRIBUTING.md").read_text(),
    re.MULTILINE,
)
TESTS = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}


def patterns(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_source_file_has_a_test_of_its_name_or_a_row_of_the_table():
    by_table = [pattern for code, _ in ROWS for pattern in patterns(code)]
    files = [file for folder in ("modeling", "edlm_hf") for file in (ROOT / folder).rglob("*.py")]

    without = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        is_named = f"test_{file.stem}" in TESTS or file.stem == "__init__"
        if not is_named and not any(fnmatch(name, pattern) for pattern in by_table):
            without.append(name)

    assert len(files) > 150 and not without


def test_every_row_of_the_table_names_files_that_exist():
    for row in ROWS:
        for pattern in patterns(" ".join(row)):
            assert list(ROOT.glob(pattern)), pattern
    assert len(ROWS) > 20
