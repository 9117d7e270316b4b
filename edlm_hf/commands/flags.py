"""A field of settings as the flag of a command: a parameter from which Typer makes it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, get_args, get_origin

import typer

from edlm_hf.parsing import names, numbers

# Parser and metavar of tuples that are given as one text
LISTS = {int: (numbers, "N,..."), str: (names, "NAME,...")}
# Short, so that no column cuts the name of a flag
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def parameters_of(field: dataclasses.Field, kind: type) -> list[inspect.Parameter]:
    """The flag of a field, and the hidden one that switches it off where its line does not show one.

    Args:
        kind: the type of the field.
    """
    # A flag that is true unless given shows its opposite, which is the one that somebody needs
    flag = flag_of(field)
    kind = type_beside_none(kind)
    declarations = [f"--{flag}"]
    if kind is bool and field.default is True:
        declarations = [f"--{flag}/--no-{flag}"]

    # None beside every type: Typer passes it where nothing is given
    kind, default, details = on_the_command_line(field, kind)
    if field.metadata["positional"]:
        details["metavar"] = field.name.upper()
        declared = typer.Argument(**details)
    else:
        declared = typer.Option(*declarations, **details)
    parameters = [parameter(field.name, Annotated[kind | None, declared], default)]

    # With its opposite in the help, a flag that is off would make all columns narrow
    if kind is bool and field.default is not True:
        opposite = typer.Option(f"--no-{flag}", hidden=True)
        parameters.append(parameter(f"no_{field.name}", Annotated[bool, opposite], False))
    return parameters


def on_the_command_line(field: dataclasses.Field, kind: type) -> tuple[type, object, dict]:
    """The type and default of the flag of a field, and what else Typer is told of it.

    A tuple is a flag that is given several times, or one text with commas.
    """
    facts = field.metadata
    parser = facts["parser"]
    metavar = facts["metavar"] or METAVARS.get(kind)

    # Whether the help shows the default: null and false say nothing to a reader
    default = field.default
    shown = default is not None and default is not False

    # 1. Without a default an option is required. One that is made later is described by `shown`
    if default is dataclasses.MISSING:
        default = None
        if field.default_factory is dataclasses.MISSING:
            default = inspect.Parameter.empty

    # 2. Tuples. The default of a repeated flag is text in the help alone: the dataclass has it itself
    is_tuple = get_origin(kind) is tuple
    if is_tuple and facts["repeated"]:
        kind = list[str]
        metavar = facts["metavar"] or METAVARS[str]
        if isinstance(default, tuple):
            shown = ", ".join(default) or False
            default = None
    elif is_tuple:
        parser, metavar = LISTS[get_args(kind)[0]]
        kind = str
        if isinstance(default, tuple):
            default = ",".join(map(str, default))

    # 3. The parser gets texts alone, the default among them
    details = {
        "help": facts["help"],
        "min": facts["min"],
        "max": facts["max"],
        "metavar": metavar,
        "show_default": facts["shown"] or shown,
    }
    if parser is not None:
        details["parser"] = with_usage_error(parser)
        if default not in (None, inspect.Parameter.empty):
            default = str(default)
    return kind, default, details


def flag_of(field: dataclasses.Field) -> str:
    """The name of a flag, without the hyphens in front."""
    return field.metadata["flag"] or field.name.replace("_", "-")


def type_beside_none(kind: type) -> type:
    """`int | None` -> int."""
    parts = get_args(kind)
    others = [part for part in parts if part is not NoneType]

    # A union of more than two has no single flag, and stays as it is
    if NoneType in parts and len(others) == 1:
        return others[0]
    return kind


def with_usage_error(parser: Callable[[str], object]) -> Callable[[str], object]:
    """The parser with its ValueError as a message of wrong usage."""

    @functools.wraps(parser)
    def parse(text: str):
        try:
            return parser(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def parameter(name: str, annotation, default=inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter by name. Without a default it is required."""
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=default,
    )


__all__ = ["flag_of", "parameter", "parameters_of"]
