"""The command line: `edlm COMMAND`. A table of the commands, which are in `edlm_hf/commands/`.

Results go to stdout, everything else to stderr. Exit codes: 0; 1 for a failure, told in one line; 2 for wrong usage;
130 after Ctrl-C.
"""

import sys
from typing import Annotated

import typer

from edlm_hf import __version__, help_only
from edlm_hf.benchmarks import quality_settings, samplers_settings, speed_settings
from edlm_hf.commands.benchmark_draws import draws
from edlm_hf.commands.benchmark_infilling import infilling
from edlm_hf.commands.benchmark_quality import quality
from edlm_hf.commands.benchmark_samplers import samplers
from edlm_hf.commands.benchmark_speed import speed
from edlm_hf.commands.command import Command
from edlm_hf.commands.convert import convert
from edlm_hf.commands.demo import demo
from edlm_hf.commands.evaluate import evaluate
from edlm_hf.commands.generate import generate
from edlm_hf.commands.options import add_command
from edlm_hf.commands.picture import picture
from edlm_hf.commands.push import push
from edlm_hf.terminal import quiet_libraries, write

app = typer.Typer(
    name="edlm",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
benchmark = typer.Typer(no_args_is_help=True, help="Measure this package against the published method.")


def show_version(wanted: bool) -> None:
    """Print the version and end the program, if that is `wanted`."""
    if wanted:
        write(f"edlm {__version__}")
        raise typer.Exit


@app.callback()
def options_of_the_program(
    show: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Energy-based diffusion language models."""


def main() -> None:
    """The console script: `app`, and what concerns the whole process.

    After a success, processes that are connected part; not after a failure, which may be that of one alone: the others
    would be waited for.
    """
    # Help imports nothing heavy, and transformers takes seconds
    if not help_only.is_wanted():
        quiet_libraries()

    # Click ends every command with SystemExit, a success with code 0 or None
    try:
        app()
    except SystemExit as end:
        if not end.code and "torch.distributed" in sys.modules:
            from edlm_hf.processes import disconnect

            disconnect()
        raise


COMMANDS = {
    "demo": demo,
    "generate": generate,
    "picture": picture,
    "evaluate": evaluate,
    "convert": convert,
    "push": push,
}
# With the values of --quick, where there is one
BENCHMARKS = {
    "speed": (speed, speed_settings.QUICK),
    "quality": (quality, quality_settings.QUICK),
    "samplers": (samplers, samplers_settings.QUICK),
    "infilling": (infilling, None),
    "draws": (draws, None),
}

for name, run in COMMANDS.items():
    add_command(app, name, run)
for name, (run, quick) in BENCHMARKS.items():
    add_command(benchmark, name, run, quick)

# Their options are those of transformers' Trainer, and are parsed by its HfArgumentParser
TRAINING = {
    "train-denoiser": "a masked diffusion model",
    "train-autoregressive": "the autoregressive baseline",
    "train-energy": "the NCE energy of a denoiser",
    "train-drafts": "the draft head of a denoiser, for speculative sampling,",
}


def add_training_command(name: str, description: str) -> None:
    """Add a command that passes its arguments to `commands/train.py`, which is imported when it runs."""

    def command(arguments: typer.Context) -> None:
        from edlm_hf.commands.train import COMMANDS

        COMMANDS[name](arguments.args)

    # All arguments pass, `--help` among them, which the parser of the Trainer's options answers
    text = f"Train {description} by a recipe (YAML) or flags; --help lists them."
    app.command(
        name,
        cls=Command,
        help=text,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )(command)


for name, description in TRAINING.items():
    add_training_command(name, description)
app.add_typer(benchmark, name="benchmark")
