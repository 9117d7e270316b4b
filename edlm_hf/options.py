"""What all commands share: how they fail, YAML files of their options, devices, lists, and the progress bar."""

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
    """A command whose failures, where the user can do something about them, are one line on stderr and exit code 1.

    With EDLM_TRACEBACK=1 in the environment they have their traceback. Ctrl-C is exit code 130.
    """

    def make_context(self, *args, **kwargs):
        """As usual; what a wrong use quotes steers no terminal and is no secret."""
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
            tell_of(context, "interrupted.")
            raise typer.Exit(130) from None
        except Exception as error:
            line = None if isinstance(error, BrokenPipeError) else explanation(error)
            if line is None or os.environ.get("EDLM_TRACEBACK", "0") not in ("", "0"):
                raise
            tell_of(context, line)
            raise typer.Exit(1) from None


def tell_of(context: typer.Context, line: str) -> None:
    """Tell how a command ended; of several processes one speaks."""
    if os.environ.get("RANK", "0") == "0":
        tell(f"{context.command_path}: {line}")


def read_config(context: typer.Context, file: Path | None) -> None:
    """Make what a YAML file sets the defaults of the options, converted and checked as if it stood in flags."""
    if file is None:
        return
    known = {option.opts[0].lstrip("-"): option for option in context.command.params if option.name != "config"}
    try:
        given = {str(name).replace("_", "-"): x for name, x in read_options(file).items() if x is not None}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if unknown := [name for name in given if name not in known]:
        raise typer.BadParameter(
            f"{file} sets {', '.join(unknown)}, which {context.command_path} does not have. It has {', '.join(known)}."
        )
    context.default_map = {}
    for name, value in given.items():
        option = known[name]
        flag, several = getattr(option, "is_flag", False), option.multiple or "," in (option.metavar or "")
        allowed = bool if flag else (str, int, float, list) if several else (str, int, float)
        if not isinstance(value, allowed) or isinstance(value, bool) != flag:
            what = "true or false" if flag else "a text, a number or a list" if several else "a text or a number"
            raise typer.BadParameter(f"{file} sets {name} to {value!r}, but it must be {what}.")
        values = [str(x) for x in value] if isinstance(value, list) else [str(value)]
        context.default_map[option.name] = value if flag else values if option.multiple else ",".join(values)


def available(device: str | None) -> str:
    """The device, which exists; unless given cuda if there is one."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        exists = (torch.device(device).index or 0) < torch.get_device_module(device).device_count()
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
    """`distance=8` -> ("distance", 8). Numbers, true and false, and a pair of numbers (`0.2,0.8`) are read as such."""
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE, such as distance=8.")
    parts = tuple(value_of(part) for part in names(value))
    return name.strip().replace("-", "_"), parts[0] if len(parts) == 1 else parts


def value_of(text: str) -> bool | int | float | str:
    """The number, True or False that a text stands for, or else the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sampler_settings(sampler: str | None, settings: list[tuple] | None) -> dict:
    """What `generate()` takes for a sampler and its parameters; checked before a model is loaded.

    Raises:
        ValueError: no such sampler, or a parameter that it does not have or with a wrong value.
    """
    from edlm_hf.modeling.sampler_choice import PARAMETERS, make_sampler

    parameters = dict(settings or ())
    if unknown := sorted(set(parameters) - PARAMETERS):
        raise ValueError(f"No sampler has {', '.join(unknown)}. There are {', '.join(sorted(PARAMETERS))}.")
    if sampler is None:
        return parameters
    make_sampler(sampler, num_steps=1, parameters=parameters)
    return {"sampler": sampler} | parameters


NAMES = {"parser": names, "metavar": "NAME,..."}
NUMBERS = {"parser": numbers, "metavar": "N,..."}
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str | None, typer.Option(callback=available, help="cpu, cuda, ...", show_default="cuda if there is one")
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="Which masks a step reveals: ancestral, first_hitting, dilated, spaced, top_k, entropy_bound, threshold, "
        "factor, klass, remdm, low_confidence or edit.",
        show_default="the model's, or ancestral",
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler-option",
        parser=setting,
        metavar="NAME=VALUE",
        help="A parameter of the sampler, such as distance=8; repeat for more.",
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
    """A progress bar on stderr, if that is a terminal, and a function (done, in all, what is running) that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
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
]
