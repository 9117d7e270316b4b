"""Options are said once: defaults and help of every flag come from a dataclass, and old names still work."""

import ast
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from program import PROJECT
from python_path import python_path
from typer.main import get_command
from typer.testing import CliRunner

from edlm_hf.cli import BENCHMARKS, COMMANDS, app
from edlm_hf.commands.options import add_command
from edlm_hf.settings import option
from edlm_hf.terminal import SAFE_QUOTES

PACKAGE = Path(__file__).parents[2] / "edlm_hf"
RUNS = {(name,): run for name, run in COMMANDS.items()}
RUNS |= {("benchmark", name): run for name, (run, _) in BENCHMARKS.items()}
QUICK = {("benchmark", name): quick for name, (_, quick) in BENCHMARKS.items() if quick}

# The flags of version 0.1.0
PUBLISHED = {
    "demo": "new-tokens steps candidates seed",
    "convert": "ema no-ema model-length mask-token-id time-conditioning no-time-conditioning noise-schedule n-heads",
    "generate": "model tokenizer prompt samples max-new-tokens steps sampler sampler-option candidates window "
    "block-length batch-size seed device html",
    "picture": "model output prompt max-new-tokens steps sampler sampler-option candidates columns states seed device",
    "push": "private revision message",
    "evaluate": "model data metrics tokenizer split normalize length stride num-texts num-steps sampler "
    "sampler-option num-candidates inner-copies energy-window num-samples batch-size seed dtype device",
    "benchmark speed": "output modes vocab-sizes steps planned-steps batch-sizes length width blocks candidates window "
    "repeats dtype device seed compile scaling no-scaling quick no-quick",
    "benchmark quality": "output model data autoregressive nce judge vocabulary steps candidates window inner-copies "
    "texts noise-samples samples seeds batch-size dtype device quick no-quick",
    "benchmark draws": "steps vocab-size exponent positions seed",
    "benchmark samplers": "output model data autoregressive vocabulary sampler sampled steps texts noise-samples "
    "inner-copies samples seed batch-size dtype device quick no-quick",
    "benchmark infilling": "output model data autoregressive paragraphs words sampler steps candidates greedy "
    "no-greedy seeds batch-size dtype device",
}


def command_of(path):
    command = get_command(app)
    for name in path:
        command = command.commands[name]
    return command


def fields_of(path):
    """All fields that are options of a command."""
    kinds = [kind for kind in get_type_hints(RUNS[path]).values() if dataclasses.is_dataclass(kind)]
    return [field for kind in kinds for field in dataclasses.fields(kind)]


def help_of(path, columns):
    return CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(columns)}).output


def as_shown(default):
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


@pytest.mark.parametrize("path", RUNS, ids=" ".join)
def test_help_and_default_of_every_flag_are_those_of_its_field(path):
    options = {option.name: option for option in command_of(path).params}
    text = "".join(help_of(path, 300).split())
    for field in fields_of(path):
        facts = field.metadata
        assert options[field.name].help == facts["help"]
        assert facts["positional"] or f"--{facts['flag'] or field.name.replace('_', '-')}" in options[field.name].opts
        is_shown = field.default not in (dataclasses.MISSING, None, False, ()) and not facts["shown"]
        if is_shown and not facts["repeated"] and not isinstance(field.default, bool):
            assert "".join(f"{facts['help']} [default: {as_shown(field.default)}]".split()) in text

    common = {"json", "config", "quick"} | {name for name in options if name.startswith("no_")}
    assert set(options) - common == {field.name for field in fields_of(path)}


@pytest.mark.parametrize("path", RUNS, ids=" ".join)
def test_no_field_shows_a_number_or_its_own_default_in_other_words(path):
    for field in fields_of(path):
        shown = field.metadata["shown"]
        assert not shown or not any(character.isdigit() for character in shown), field.name
        has_value = field.default not in (None, dataclasses.MISSING, ())
        assert not (shown and has_value) or isinstance(field.default, tuple), field.name


def test_no_flag_of_a_command_is_written_by_hand():
    """Beside the files that make flags of fields, `edlm --version` has one."""
    written = {}
    for file in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        named = [call for call in calls if ast.unparse(call.func) in ("typer.Option", "typer.Argument")]
        if named:
            written[file.relative_to(PACKAGE).as_posix()] = len(named)
    assert set(written) == {"cli.py", "commands/options.py", "commands/flags.py"}
    assert written["cli.py"] == 1


@pytest.mark.parametrize("path", QUICK, ids=" ".join)
def test_quick_values_are_other_values_of_fields(path):
    defaults = {field.name: field.default for field in fields_of(path)}
    assert all(name in defaults and value != defaults[name] for name, value in QUICK[path].items())


@pytest.mark.parametrize("path", RUNS, ids=" ".join)
def test_help_fits_two_screens_of_fifty_lines_and_a_hundred_columns(path):
    assert len(help_of(path, 100).splitlines()) <= 2 * 50


@pytest.mark.parametrize("path", RUNS, ids=" ".join)
def test_no_name_of_a_flag_is_cut_on_a_narrow_terminal(path):
    text = help_of(path, 80)
    assert all(
        f"{option.opts[0]} " in text
        for option in command_of(path).params
        if option.opts[0][:2] == "--" and not option.hidden
    )


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("benchmark", "samplers", "--help")])
def test_help_imports_neither_torch_nor_transformers(arguments):
    module, function = PROJECT["scripts"]["edlm"].split(":")
    code = f"""
import sys

sys.argv = ["edlm", *{arguments}]
from {module} import {function}

try:
    {function}()
finally:
    print([name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules], file=sys.stderr)
"""
    env = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "--help" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_command_that_runs_knows_the_model_types_also_where_help_seemed_wanted(tmp_path):
    """A prompt may read --help."""
    code = """
import sys

sys.argv = ["edlm", "convert", "nothing.ckpt", "--help"]
import edlm_hf

assert "torch" not in sys.modules
print(edlm_hf.MDLMConfig.model_type, "torch" in sys.modules)
"""
    env = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.stdout == "mdlm True\n", done.stderr


def test_every_flag_of_0_1_0_is_known_and_old_ones_are_hidden():
    for name, published in PUBLISHED.items():
        path = tuple(name.split())
        command = command_of(path)
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        for flag in published.split():
            assert f"--{flag}" in flags or flag in command.renamed, (name, flag)
        assert not {f"--{old}" for old in command.renamed} & flags
        assert not set(command.renamed) - set(published.split())

        shown = help_of(path, 300)
        assert not any(f" --{old} " in shown for old in command.renamed)


def test_one_quantity_has_one_flag_in_all_commands():
    """Fields of results have names of their own, flags do not."""
    renamed = {}
    for path in RUNS:
        for old, new in command_of(path).renamed.items():
            renamed.setdefault(old, set()).add(new.name)
    assert {old for old, new in renamed.items() if len(new) > 1} == set()
    flags = {flag for path in RUNS for option in command_of(path).params for flag in option.opts}
    assert not flags & {f"--{old}" for old in renamed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    required: str = option(help="A text.")
    amount: int = option(3, min=1, flag="num-things", old=("things", "count"), help="How many.")
    parts: tuple[int, ...] = option((1, 2), help="Numbers.")
    words: tuple[str, ...] = option((), repeated=True, help="Words.")
    fast: bool = option(False, help="Quickly.")
    warm: bool = option(True, help="Warm.")
    clean: bool | None = option(
        None,
        old=("wash",),
        old_values={"yes": True, "no": False},
        help="Clean.",
    )


@pytest.fixture
def given(tmp_path):
    """A function that calls a command with arguments and lines of a file: what it was given, and what it told."""
    seen = []
    toy = typer.Typer()

    def work(options: Given, as_json: bool) -> None:
        """Work."""
        seen.append(options)

    @toy.callback()
    def group():
        """Keeps the name of the command."""

    add_command(toy, "work", work, quick={"amount": 1, "parts": (9,)})

    def call(*arguments, **lines):
        if lines:
            (tmp_path / "lines.yaml").write_text(json.dumps(lines))
            arguments = (*arguments, "--config", str(tmp_path / "lines.yaml"))
        result = CliRunner().invoke(toy, ["work", *arguments], prog_name="toy")
        return seen.pop() if result.exit_code == 0 else None, result.stderr

    return call


def test_only_what_is_given_reaches_the_dataclass(given):
    assert given("--required", "a") == (Given(required="a"), "")
    flags = ["--num-things", "5", "--parts", "4,5", "--words", "x", "--words", "y", "--fast", "--no-warm", "--clean"]
    expected = Given(required="a", amount=5, parts=(4, 5), words=("x", "y"), fast=True, warm=False, clean=True)
    assert given("--required", "a", *flags)[0] == expected
    lines = {"required": "a", "num-things": 5, "parts": [4, 5], "words": ["x", "y"], "fast": True, "warm": False}
    assert given(**lines, clean=True)[0] == expected
    assert given("--required", "a", "--no-fast", "--no-clean", fast=True)[0] == Given(required="a", clean=False)


def test_the_last_of_a_switch_and_its_opposite_counts(given):
    assert given("--required", "a", "--no-fast", "--fast")[0] == Given(required="a", fast=True)
    assert given("--required", "a", "--fast", "--no-fast", "--clean")[0] == Given(required="a", clean=True)
    assert given("--required", "a", "--no-warm", "--warm", "--quick", "--no-quick")[0] == Given(required="a")
    assert given("--fast", "--required", "--no-fast")[0] == Given(required="--no-fast", fast=True)


def test_commands_quiet_the_libraries_though_a_value_looks_like_the_question_for_help(
    given,
    monkeypatch,
):
    handler = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    monkeypatch.setattr(sys, "argv", ["edlm", "work", "--required", "--help"])

    # The process of the tests stays as it is
    monkeypatch.setattr("transformers.utils.logging.disable_progress_bar", lambda: None)
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    assert given("--required", "--help")[0] == Given(required="--help")
    assert given("--required", "--help")[0] == Given(required="--help")
    assert handler.filters == [SAFE_QUOTES]


def test_quick_values_yield_to_flags_and_lines(given):
    assert given("--required", "a", "--quick")[0] == Given(required="a", amount=1, parts=(9,))
    assert given("--required", "a", "--quick", "--parts", "7")[0] == Given(required="a", amount=1, parts=(7,))
    assert given(required="a", quick=True, num_things=8)[0] == Given(required="a", amount=8, parts=(9,))
    assert given("--no-quick", required="a", quick=True)[0] == Given(required="a")


def test_flags_may_have_underscores_and_values_may_look_like_flags(given):
    assert given("--required", "--count", "--num_things=5") == (Given(required="--count", amount=5), "")


def test_old_names_mean_the_new_ones_and_are_told_in_one_line(given):
    told = "toy work: old names, which work until 0.3.0: "
    options, stderr = given("--required", "a", "--things", "5", "--wash", "no", "--fast")
    assert options == Given(required="a", amount=5, clean=False, fast=True)
    assert stderr == f"{told}--things (now --num-things), --wash (now --clean).\n"
    options, stderr = given("--count=6", required="a", wash="yes")
    assert options == Given(required="a", amount=6, clean=True)
    assert stderr == f"{told}--count (now --num-things).\n{told}wash (now clean).\n"


def test_an_old_value_that_was_never_one_is_refused(given):
    for arguments, lines in (
        (("--required", "a", "--wash", "often"), {}),
        ((), {"required": "a", "wash": "often"}),
    ):
        options, stderr = given(*arguments, **lines)
        assert options is None
        assert "is 'often', but it must be yes or no" in " ".join(stderr.split())
