"""The program `edlm` in the process of a test: calls, its commands, and what it prints."""

import json

from typer.main import get_command
from typer.testing import CliRunner

from edlm_hf.cli import app


def call(*arguments, env=None):
    """The result of `edlm` with these arguments."""
    return CliRunner().invoke(app, list(map(str, arguments)), env=env)


def generating(model, prompt, new_tokens, steps):
    """The arguments of `edlm generate` that most tests have."""
    options = {
        "model": model,
        "prompt": prompt,
        "max-new-tokens": new_tokens,
        "max-denoising-steps": steps,
    }
    return ["generate", *(word for name, value in options.items() for word in (f"--{name}", value))]


def commands(group=None, path=()):
    """All commands by what is typed for them, those of training left out."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not name.startswith("train-"):
            yield (*path, name), command


def refused(result, words):
    """Wrong usage: exit code 2, with `words` somewhere in the box on stderr."""
    told = " ".join(result.stderr.replace("\u2502", " ").split())
    assert result.exit_code == 2 and not result.stdout and words in told, result.output


def lines_of(told) -> list[str]:
    """What was told on stderr, without the bars of transformers, which the program switches off."""
    return [line for line in told.stderr.splitlines() if line and "Loading weights" not in line]


def result_of(call_result) -> dict:
    """The result of a command with `--json` that did not fail."""
    assert call_result.exit_code == 0, call_result.output
    return json.loads(call_result.stdout)  # nothing else is on stdout
