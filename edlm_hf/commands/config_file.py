"""YAML files of options (`--config`): their lines become the defaults of flags, checked as flags are."""

from collections.abc import Mapping
from pathlib import Path

import typer

from edlm_hf.commands.old_names import Renamed, with_new_keys
from edlm_hf.files import read_options


def read_config(context: typer.Context, file: Path, renamed: Mapping[str, Renamed]) -> None:
    """Make the lines of a YAML file the defaults of the options.

    Raises:
        typer.BadParameter: the file cannot be read, or sets an option that the command does not
            have, or one to a value of another type.
    """
    # 1. The options that a file can set, by their names without hyphens in front
    shown = [option for option in context.command.params if option.name != "config" and not option.hidden]
    options = {option.opts[0].lstrip("-"): option for option in shown}

    # 2. Its lines. A key may have underscores, and a line without a value sets nothing
    try:
        lines = read_options(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    given = {name: value for name, value in lines.items() if value is not None}
    values = {str(name).replace("_", "-"): value for name, value in given.items()}
    values = with_new_keys(context, values, renamed)

    unknown = [name for name in values if name not in options]
    if unknown:
        raise typer.BadParameter(
            f"{file} sets {', '.join(unknown)}, which {context.command_path} does not have. "
            f"It has {', '.join(options)}."
        )

    # 3. Defaults, so that flags override them
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
    is_repeated = getattr(option, "multiple", False)
    takes_list = is_repeated or "," in (option.metavar or "")

    if is_flag:
        allowed = bool
        description = "true or false"
    elif takes_list:
        allowed = (str, int, float, list)
        description = "a text, a number or a list"
    else:
        allowed = (str, int, float)
        description = "a text or a number"

    # A bool is an int for Python
    if not isinstance(value, allowed) or isinstance(value, bool) != is_flag:
        raise typer.BadParameter(f"{file} sets {name} to {value!r}, but it must be {description}.")

    # The option converts and checks the text like the text of a flag
    if is_flag:
        return value
    items = value if isinstance(value, list) else [value]
    values = [str(item) for item in items]
    return values if is_repeated else ",".join(values)


__all__ = ["read_config"]
