"""Names on pages of the documentation: what they link to, name, or describe is there, and written so."""

import ast
import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

import edlm_hf.data
import edlm_hf.evaluation
import edlm_hf.metrics
import edlm_hf.training
from edlm_hf.modeling.sampler_choice import SAMPLERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SYMBOLS, MATHEMATICS, TROUBLESHOOTING = (DOCS / f"{name}.md" for name in ("symbols", "mathematics", "troubleshooting"))
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md")]
PAGES = [*sorted(DOCS.glob("*.md")), *REFERENCE, *OTHERS]
FILES = [path for path in ROOT.glob("[!.]*/**/*") if path.is_file()] + list(ROOT.glob("*.*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    # Blocks are run instead
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"

    names = {path.name for path in FILES}
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    functions = set(re.findall(r"^def (\w+)", code, re.MULTILINE))
    for name in re.findall(r"`([\w./-]+)`", text):
        if re.fullmatch(r"(edlm_hf|modeling|tests|recipes|docs|results)/[\w./-]+", name):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        elif re.fullmatch(r"\w+\.(py|md|yaml)", name):
            assert name in names, f"{page.name} names {name}"
        elif re.fullmatch(r"test_\w+", name):
            assert name in functions, f"{page.name} names the test {name}"


def documented_names() -> set[str]:
    """What the pages of the reference describe."""
    text = "\n".join(page.read_text() for page in REFERENCE)
    return set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("package", [edlm_hf, edlm_hf.data, edlm_hf.evaluation, edlm_hf.metrics, edlm_hf.training])
def test_every_public_name_is_in_the_reference(package):
    """That each name there exists is checked by `make docs`."""
    public = set(getattr(package, "__all__", ()))
    if not public:
        public = {name for name, value in vars(package).items() if getattr(value, "__module__", "") == package.__name__}
    assert public
    assert not (missing := {f"{package.__name__}.{name}" for name in public} - documented_names()), missing


def test_every_sampler_is_in_the_reference():
    described = {name.rsplit(".", 1)[1] for name in documented_names()}
    assert not (missing := {sampler.__name__ for sampler in SAMPLERS.values()} - described), missing


WITH_EXAMPLES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in sorted((ROOT / "edlm_hf").rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


def names_in(path: Path) -> set[str]:
    """Every name that a file of Python defines or uses, keys of dictionaries too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names |= {getattr(node, field, None) for field in ("name", "arg", "attr", "id")}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def test_symbols_of_the_paper_are_where_the_page_says():
    """A row of docs/symbols.md: the symbol, what it is, names in the code, their file."""
    rows = re.findall(r"^\| .+ \| .+ \| (.+) \| `([\w/]+\.py)` \|$", SYMBOLS.read_text(), re.MULTILINE)
    assert len(rows) == SYMBOLS.read_text().count(".py` |") >= 30
    for code, path in rows:
        names = re.findall(r"`(\w+)`", code)
        assert names, code
        assert not (missing := set(names) - names_in(ROOT / path)), f"{path} has no {missing}"


def test_every_label_of_a_test_is_defined():
    defined = re.findall(r"^\| ([CS]\d+) \|", MATHEMATICS.read_text(), re.MULTILINE)
    assert len(defined) == len(set(defined))
    used = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        used |= set(re.findall(r"\b[CS]\d+\b", file.read_text()))
    assert used and not (undefined := used - set(defined)), undefined


def test_messages_that_users_meet_are_written_so_in_the_code():
    """The first column of docs/troubleshooting.md, where "..." stands for what differs."""
    texts = [(DOCS / "bad_inputs.md").read_text().replace("\\", "").replace("`", "")]
    for folder in ("edlm_hf", "modeling"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    messages = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING.read_text(), re.MULTILINE)
    assert len(messages) >= 30
    for message in messages:
        for part in message.split("..."):
            assert any(part.strip() in text for text in texts), f"{message}: nothing says {part.strip()!r}"


def test_the_table_of_versions_is_that_of_the_constraints():
    page = (DOCS / "hardware.md").read_text()
    rows = re.findall(r"(?m)^\| ([a-z_]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page)
    assert {"torch", "transformers", "huggingface_hub", "peft"} < {name for name, *_ in rows}
    for name, *versions in rows:
        for file, version in zip(
            ("constraints/floors.txt", "constraints.txt", "constraints/newest.txt"), versions, strict=True
        ):
            assert f"\n{name}=={version}\n" in (ROOT / file).read_text(), (name, file)


def test_citation_and_changelog_speak_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == edlm_hf.__version__ and citation["cff-version"]
    assert "2410.21357" in json.dumps(citation["preferred-citation"])
    assert f"## {edlm_hf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def commands_of(command):
    """Every command of the program, those of a group too."""
    if not hasattr(command, "commands"):
        return [command]
    return [leaf for part in command.commands.values() for leaf in commands_of(part)]


def test_the_changelog_says_every_flag_that_has_a_new_name():
    from typer.main import get_command

    from edlm_hf.cli import app

    rows = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("| `")]
    renamed = [getattr(command, "renamed", {}) for command in commands_of(get_command(app))]
    pairs = {(f"`--{old}", f"`--{entry.name}`") for names in renamed for old, entry in names.items()}
    missing = [pair for pair in pairs if not any(pair[0] in row and pair[1] in row for row in rows)]
    assert len(pairs) >= 14 and not missing
