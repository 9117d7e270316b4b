"""Documentation is run as it is written: the fenced blocks of a page, in their order and in one folder.

    python pages.py SCRATCH REPORT PAGE...    # in an environment of its own; the report is a JSON list of blocks

- ```python: runs; the blocks of a page share one namespace.
- ```bash and ```console (there, lines that begin with "$ "): every command with `edlm` in it, launchers included, and
  every `python -m edlm_hf.lm_eval` must be one that exists, with its flags, recipes and settings. `run` behind it: the
  block holds nothing but `edlm` commands, and they run. The files that `pytest` is called with exist.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("accelerate", "torchrun")
# What a machine that only reads a recipe may lack
ANY_MACHINE = ("--bf16", "false", "--torch_compile", "false")


class WrongCommand(Exception):
    """A command of a page that does not exist as it is written, or that fails."""


@dataclass
class Block:
    """A fenced block: its language, the words behind that, its text, and the line of the page where the text begins."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = enumerate(page.read_text().splitlines(), start=1)
    for number, line in lines:
        if not (opened := re.fullmatch(r"(`{3,})\s*(.*)", line)):
            continue
        language, *words = opened[2].split() or [""]

        body = []
        for _, inside in lines:
            if inside.strip() == opened[1]:
                break
            body.append(inside)

        yield Block(page, number + 1, language, tuple(words), "\n".join(body))


# ------------------------------------------------------------------------------------------------------------- commands


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a block. Lines that end with a backslash go on, comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    split = (shlex.split(line.replace("$(which edlm)", "edlm"), comments=True) for line in lines)
    return [words for words in split if words]


def check(words: list[str], run: bool = False) -> None:
    """Check one command, and run it if asked to.

    Raises:
        WrongCommand: it does not exist as it is written, or fails.
    """
    end = next(
        (i for i, word in enumerate(words) if word in ("|", ">", ">>", "&&", "||", ";")),
        len(words),
    )
    words = [word for i, word in enumerate(words[:end]) if i or not re.fullmatch(r"\w+=.*", word)]
    if words[:3] == ["python", "-m", "edlm_hf.lm_eval"]:
        return check_harness(words[3:])
    if words[:1] == ["pytest"]:
        check_pytest(words[1:])

    if "edlm" not in words:
        if run:
            raise WrongCommand(f"{shlex.join(words)}: a block that is run holds edlm commands only")
        return None

    at = words.index("edlm")
    if at:
        check_launcher(words[:at])
    check_edlm(words[at + 1 :])

    if run:
        run_edlm(words[at + 1 :])


def check_pytest(arguments: list[str]) -> None:
    """The files and folders of tests exist."""
    for path in arguments:
        if path.startswith("tests/") and not (ROOT / path).exists():
            raise WrongCommand(f"there is no {path}")


def check_edlm(arguments: list[str]) -> None:
    from typer.main import get_command

    from edlm_hf.cli import app
    from edlm_hf.commands import train as training

    command, name = get_command(app), "edlm"
    while hasattr(command, "commands"):
        if not arguments or arguments[0] not in command.commands:
            raise WrongCommand(f"{name} has no command {' '.join(arguments[:1]) or 'by itself'}")
        name, arguments = arguments[0], arguments[1:]
        command = command.commands[name]

    if "--help" in arguments:
        return
    if name in training.COMMANDS:
        return check_training(name, arguments)

    try:
        command.make_context(name, list(arguments))
    # Typer has its own copy of click: its errors are told apart by what they can say
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise WrongCommand(error.format_message()) from None


class Parsed(Exception):
    """A command has understood its arguments."""


def check_training(name: str, arguments: list[str]) -> None:
    """The command itself, up to the point where it has understood its arguments."""
    from edlm_hf.commands import train as training

    parse = training.parse

    def parse_only(*given):
        raise Parsed(parse(*given))

    errors = io.StringIO()
    with patch.object(training, "parse", parse_only), contextlib.redirect_stderr(errors):
        try:
            training.COMMANDS[name]([*arguments, *ANY_MACHINE])
        except Parsed:
            return
        except SystemExit:  # argparse
            raise WrongCommand(errors.getvalue().strip().splitlines()[-1]) from None
        except (ValueError, OSError) as error:
            raise WrongCommand(str(error)) from None


def check_launcher(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            if words[:2] == ["accelerate", "launch"]:
                config = launch_command_parser().parse_args([*words[2:], "edlm"]).config_file
                if config is not None and not Path(config).is_file():
                    raise WrongCommand(f"there is no {config}")
            elif words[0] == "torchrun":
                get_args_parser().parse_args([*words[1:], "edlm"])
            else:
                raise WrongCommand(f"{words[0]} is none of the known launchers: {', '.join(LAUNCHERS)}")
        except SystemExit:
            raise WrongCommand(errors.getvalue().strip().splitlines()[-1]) from None


def check_harness(arguments: list[str]) -> None:
    """The settings in --model_args are those of the bridge. The other flags belong to the harness."""
    import ast

    from edlm_hf.evaluation.scorer import EDLMScorer
    from edlm_hf.modeling.generation_config_edlm import EDLMGenerationConfig

    # The module cannot be imported without the harness
    tree = ast.parse((ROOT / "edlm_hf" / "lm_eval.py").read_text())
    bridge = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "EDLMHarness")
    made = next(node for node in bridge.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    known = {argument.arg for argument in made.args.args} | set(inspect.signature(EDLMScorer).parameters)
    known |= set(EDLMGenerationConfig.diffusion_defaults)
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--model_args", required=True)
    parsed, _ = parser.parse_known_args(arguments)
    given = {setting.partition("=")[0] for setting in parsed.model_args.split(",")}
    if parsed.model in (None, "edlm") and given - known:
        raise WrongCommand(f"--model_args has {', '.join(sorted(given - known))}, which the bridge does not know")


def run_edlm(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        raise WrongCommand(f"exit code {result.exit_code}: {result.output[-2000:]} {result.exception!r}")


# ---------------------------------------------------------------------------------------------------------------- pages


def run_block(block: Block, namespace: dict) -> None:
    if block.language == "python":
        # Errors have lines of the page
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        exec(code, namespace)
    elif block.language in ("bash", "sh", "shell", "console"):
        for words in commands(block):
            check(words, run="run" in block.words)


def run_page(page: Path, folder: Path) -> list[dict]:
    """Run the blocks of a page in `folder`, where `recipes` is that of the repository; what came of every block.

    Commands that are only checked come last: those of training would reset what a trainer of the page stands on.
    """
    folder.mkdir(parents=True)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    in_order = sorted(
        blocks(page),
        key=lambda block: block.language != "python" and "run" not in block.words,
    )
    before, namespace, results = Path.cwd(), {"__name__": "__main__"}, []
    os.chdir(folder)

    try:
        for block in in_order:
            began, error = time.monotonic(), None
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    run_block(block, namespace)
            except WrongCommand as wrong:
                error = f"{page.name}, block of line {block.line}: {wrong}"
            except Exception:
                error = f"{page.name}, block of line {block.line}:\n{traceback.format_exc()}"

            seconds = round(time.monotonic() - began, 2)
            result = {
                "page": page.name,
                "line": block.line,
                "language": block.language,
                "words": block.words,
            }
            results.append(result | {"seconds": seconds, "error": error})
    finally:
        os.chdir(before)

    return sorted(results, key=lambda result: result["line"])


def main(scratch: str, report: str, *pages: str) -> None:
    from local_hub import write_hub

    write_hub(Path(os.environ["HF_HUB_CACHE"]))
    results = [result for page in pages for result in run_page(Path(page), Path(scratch, Path(page).stem))]
    Path(report).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
