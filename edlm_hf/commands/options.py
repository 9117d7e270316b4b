"""Commands made of functions that take dataclasses: a field is a flag, a YAML key, a line of the help, and a default.

    def generate(model: ModelOptions, steps: StepOptions, as_json: bool): ...

    add_command(app, "generate", generate)

Only what a user gives reaches a dataclass, which has the defaults and the checks itself. Every command also has
`--json` and `--config`, and one with values for a first look has `--quick`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from edlm_hf.commands.command import Command
from edlm_hf.commands.config_file import read_config
from edlm_hf.commands.flags import flag_of, parameter, parameters_of
from edlm_hf.commands.old_names import Renamed, with_new_names


def add_command(
    group: typer.Typer,
    name: str,
    run: Callable[..., None],
    quick: Mapping[str, object] | None = None,
) -> None:
    """Add `run` to a group of commands.

    Args:
        run: a function of dataclasses whose fields are made by `option`, and of `as_json`. Its docstring is the help.
        quick: values of fields with `--quick`, unless flags or the file say others.
    """
    # 1. The dataclasses among the arguments of `run`, and their fields in the order of the help
    types_of_arguments = get_type_hints(run)
    kinds = {name: kind for name, kind in types_of_arguments.items() if dataclasses.is_dataclass(kind)}
    fields = [field for kind in kinds.values() for field in options_of(kind)]

    # 2. The command: what was given, by flags or by the file, over the quick values
    def command(context: typer.Context, **values) -> None:
        is_quick = values.get("quick") and not values["no_quick"]
        chosen = dict(quick) if is_quick else {}
        for field in fields:
            # Typer makes lists of repeated flags, and the settings have tuples
            if context.get_parameter_source(field.name).name != "DEFAULT":
                value = values[field.name]
                chosen[field.name] = tuple(value) if isinstance(value, list) else value

            # The hidden opposite of a flag, which overrides a file
            if values.get(f"no_{field.name}"):
                chosen[field.name] = False

        arguments = {name: make(kind, chosen) for name, kind in kinds.items()}
        run(**arguments, as_json=values["json"])

    # 3. Its flags
    renamed = old_names_of(fields)
    parameters = [parameter("context", typer.Context)]
    for kind in kinds.values():
        types = get_type_hints(kind)
        for field in options_of(kind):
            parameters += parameters_of(field, types[field.name])
    parameters += common_parameters(renamed, quick is not None)

    # 4. Typer reads signature, annotations and docstring as if somebody had written the function
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__

    # Click makes the command from a class, so that the old names are in a class of their own
    with_old_names = type("SettingsCommand", (SettingsCommand,), {"renamed": renamed})
    group.command(name, cls=with_old_names)(command)


class SettingsCommand(Command):
    """A command whose flags also have underscores in place of hyphens, and old names."""

    renamed: Mapping[str, Renamed] = {}

    def parse_args(self, context, arguments):
        """As usual, on arguments with the new names alone."""
        return super().parse_args(context, with_new_names(context, arguments, self.renamed))


def options_of(kind: type) -> list[dataclasses.Field]:
    """The fields of a dataclass that `option` made."""
    return [field for field in dataclasses.fields(kind) if field.metadata]


def make(kind: type, values: Mapping[str, object]):
    """The dataclass `kind` with those of the values that are its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    given = {name: values[name] for name in names if name in values}
    return kind(**given)


def old_names_of(fields: list[dataclasses.Field]) -> dict[str, Renamed]:
    """What the old names of fields mean now."""
    renamed = {}
    for field in fields:
        new = Renamed(flag_of(field), field.metadata["old_values"] or {})
        for old in field.metadata["old"]:
            renamed[old] = new
    return renamed


def common_parameters(renamed: Mapping[str, Renamed], has_quick: bool) -> list[inspect.Parameter]:
    """The options of every command."""

    def read(context: typer.Context, file: Path | None) -> None:
        if file is not None:
            read_config(context, file, renamed)

    quick = typer.Option("--quick", help="Small values unless given: a first look in under two minutes.")
    json = typer.Option("--json", help="Print the result as JSON.")

    # Eager: the file is read before the other options, whose defaults it sets
    config = typer.Option(
        callback=read,
        is_eager=True,
        exists=True,
        dir_okay=False,
        help="YAML file of options; flags override it.",
    )
    common = [
        parameter("json", Annotated[bool, json], False),
        parameter("config", Annotated[Path | None, config], None),
    ]

    # Only a benchmark has values for a first look
    if has_quick:
        no_quick = typer.Option("--no-quick", hidden=True)
        common.insert(0, parameter("no_quick", Annotated[bool, no_quick], False))
        common.insert(0, parameter("quick", Annotated[bool, quick], False))
    return common


__all__ = ["add_command"]
