"""Options that commands share: failures in one line, YAML files, devices, lists and progress."""

import os
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from edlm_hf.errors import explanation
from edlm_hf.files import read_options
from edlm_hf.hidden_secrets import hide_secrets
from edlm_hf.terminal import tell, visible


class Command(TyperCommand):
    """A command whose failures are one line on stderr and exit code 1, if the user can mend them.

    With EDLM_TRACEBACK=1 in the environment they keep their traceback. Ctrl-C is exit code 130.
    """

    def make_context(self, *args, **kwargs):
        """As usual. A message of wrong usage, which quotes the arguments, shows no secret."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if isinstance(getattr(error, "message", None), str):
                error.message = visible(hide_secrets(error.message))
            raise

    def invoke(self, context):
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            tell_end(context, "interrupted.")
            raise typer.Exit(130) from None
        except Exception as error:
            line = None if isinstance(error, BrokenPipeError) else explanation(error)
            wants_traceback = os.environ.get("EDLM_TRACEBACK", "0") not in ("", "0")
            if line is None or wants_traceback:
                raise
            tell_end(context, line)
            raise typer.Exit(1) from None


def tell_end(context: typer.Context, line: str) -> None:
    """Tell how a command ended. Of several processes only the first one does."""
    if os.environ.get("RANK", "0") == "0":
        tell(f"{context.command_path}: {line}")


def without_none(options: dict) -> dict:
    """The options that were given. The others keep the default of what they are passed to."""
    return {name: value for name, value in options.items() if value is not None}


def read_config(context: typer.Context, file: Path | None) -> None:
    """Make the lines of a YAML file the defaults of the options, checked as flags are.

    Raises:
        typer.BadParameter: the file cannot be read, or sets an option that the command does not
            have, or one to a value of another type.
    """
    if file is None:
        return
    others = [option for option in context.command.params if option.name != "config"]
    options = {option.opts[0].lstrip("-"): option for option in others}

    try:
        lines = read_options(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    values = {str(name).replace("_", "-"): value for name, value in without_none(lines).items()}

    if unknown := [name for name in values if name not in options]:
        raise typer.BadParameter(
            f"{file} sets {', '.join(unknown)}, which {context.command_path} does not have. "
            f"It has {', '.join(options)}."
        )
    context.default_map = {}
    for name, value in values.items():
        option = options[name]
        context.default_map[option.name] = default_of(option, name, value, file)


def default_of(option, name: str, value, file: Path) -> bool | str | list[str]:
    """Convert the value of a line `name: value` of a file to the default of an option.

    Raises:
        typer.BadParameter: the value has another type than the option takes.
    """
    is_flag = getattr(option, "is_flag", False)
    takes_list = option.multiple or "," in (option.metavar or "")

    if is_flag:
        allowed, description = bool, "true or false"
    elif takes_list:
        allowed, description = (str, int, float, list), "a text, a number or a list"
    else:
        allowed, description = (str, int, float), "a text or a number"

    # A bool is an int for Python
    if not isinstance(value, allowed) or isinstance(value, bool) != is_flag:
        raise typer.BadParameter(f"{file} sets {name} to {value!r}, but it must be {description}.")

    # The option converts and checks the text like the text of a flag
    if is_flag:
        return value
    values = [str(x) for x in value] if isinstance(value, list) else [str(value)]
    return values if option.multiple else ",".join(values)


def available(device: str | None) -> str:
    """Check that a device exists. Unless given it is cuda, or cpu where there is none."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"

    try:
        index = torch.device(device).index or 0
        exists = index < torch.get_device_module(device).device_count()
    except RuntimeError:
        exists = False
    if not exists:
        raise typer.BadParameter(f"There is no device {device!r} here.")
    return device


def names(text: str) -> tuple[str, ...]:
    """`mdlm,ar` -> ("mdlm", "ar")."""
    return tuple(part.strip() for part in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """`16,64` -> (16, 64)."""
    try:
        return tuple(map(int, names(text)))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers like 16,64.") from None


def setting(text: str) -> tuple[str, bool | int | float | str | tuple]:
    """`distance=8` -> ("distance", 8).

    A value with a comma is a tuple: `remasking-window=0.2,0.8` -> ("remasking_window", (0.2, 0.8)).
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE, such as distance=8.")

    parts = tuple(value_of(part) for part in names(value))
    return name.strip().replace("-", "_"), parts[0] if len(parts) == 1 else parts


def value_of(text: str) -> bool | int | float | str:
    """`true` -> True, `8` -> 8, `0.5` -> 0.5, and any other text as it is."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sampler_settings(sampler: str | None, settings: list[tuple] | None) -> dict:
    """Check a sampler and its parameters before a model is loaded.

    Args:
        sampler: its name, or None for the model's own.
        settings: pairs (name, value) of `setting`.

    Returns:
        keyword arguments of `generate()`.

    Raises:
        ValueError: there is no such sampler, or it does not have the parameter or its value.
    """
    from edlm_hf.modeling.sampler_choice import PARAMETERS, make_sampler

    parameters = dict(settings or ())
    if unknown := sorted(set(parameters) - PARAMETERS):
        allowed = ", ".join(sorted(PARAMETERS))
        raise ValueError(f"No sampler has {', '.join(unknown)}. There are {allowed}.")

    if sampler is None:
        return parameters
    make_sampler(sampler, num_steps=1, parameters=parameters)
    return {"sampler": sampler} | parameters


# Types of options, for the signatures of commands
NAMES = {"parser": names, "metavar": "NAME,..."}
NUMBERS = {"parser": numbers, "metavar": "N,..."}
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str | None,
    typer.Option(callback=available, help="cpu, cuda, ...", show_default="cuda if there is one"),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="Which masks a step reveals: ancestral, first_hitting, dilated, spaced, top_k, "
        "entropy_bound, threshold, factor, klass, remdm, low_confidence, edit or speculative.",
        show_default="the model's, or ancestral",
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler-option",
        parser=setting,
        metavar="NAME=VALUE",
        help="A parameter of the sampler, such as score=margin; repeat for more.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        callback=read_config,
        is_eager=True,
        exists=True,
        dir_okay=False,
        help="YAML file of options; flags override it.",
    ),
]


def running(shown: bool = True):
    """Make a progress bar on stderr, which shows itself only on a terminal.

    Returns:
        the bar, a context manager, and a function `advance(done, in_all, label)` that moves it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    is_hidden = not (shown and console.is_terminal)
    progress = Progress(*columns, console=console, disable=is_hidden)
    task = progress.add_task("")

    def advance(done: int, in_all: int, label: str) -> None:
        progress.update(task, completed=done, total=in_all, description=visible(label))

    return progress, advance


__all__ = [
    "NAMES",
    "NUMBERS",
    "Command",
    "Config",
    "Device",
    "Json",
    "Sampler",
    "SamplerOptions",
    "running",
    "sampler_settings",
    "value_of",
]
