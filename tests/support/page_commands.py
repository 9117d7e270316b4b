"""Commands of the documentation exist as pages write them, with their flags, recipes and settings."""

import argparse
import contextlib
import inspect
import io
import re
import shlex
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("accelerate", "torchrun")
# What a machine that only reads a recipe may lack
ANY_MACHINE = ("--bf16", "false", "--torch_compile", "false")


class WrongCommand(Exception):
    """A command of a page that does not exist as it is written, or that fails."""


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
