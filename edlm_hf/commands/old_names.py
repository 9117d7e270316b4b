"""Flags and YAML keys by the names that they had in an earlier version, which still work and tell the new name."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import typer

from edlm_hf.commands.command import tell_line
from edlm_hf.old_names import changes_of


@dataclass(frozen=True)
class Renamed:
    """What an old name means now.

    Args:
        name: the new name, without the hyphens in front.
        values: what texts of the old option mean, where the new one is true or false.
    """

    name: str
    values: Mapping[str, bool] = field(default_factory=dict)

    def truth_of(self, old: str, text: str) -> bool:
        """True or false for a text of the old option."""
        if text not in self.values:
            raise typer.BadParameter(f"{old} is {text!r}, but it must be {' or '.join(self.values)}.")
        return self.values[text]


def with_new_names(
    context: typer.Context,
    arguments: Iterable[str],
    renamed: Mapping[str, Renamed],
) -> list[str]:
    """Arguments with the new names of flags, and with hyphens for underscores in them.

    Of `--fast` and `--no-fast` the last one stays. The values of flags stay as they are, whatever they look like.
    """
    # The flags that take the next word as their value
    options = [option for option in context.command.params if not getattr(option, "is_flag", False)]
    with_value = {flag for option in options for flag in option.opts}

    # One iterator for the loop and inside it: a word that is taken as a value is not read again
    words = iter(arguments)
    new = []
    used = []
    switches = {}  # where in `new` they stand
    for word in words:
        # What follows "--" is positional
        if word == "--":
            new += [word, *words]
            break
        if not word.startswith("--"):
            new.append(word)
            continue

        # `--max_new_tokens=5` -> `max-new-tokens`, which may be an old name
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("_", "-")
        entry = renamed.get(name, Renamed(name))
        if name in renamed:
            used.append(name)

        # An option that took one of two texts is a flag now
        if entry.values:
            text = value if equals else next(words, "")
            is_on = entry.truth_of(f"--{name}", text)
            word = f"--{entry.name}" if is_on else f"--no-{entry.name}"
        else:
            word = f"--{entry.name}{equals}{value}"

        # A value that stands in the next word is copied without a look at it
        new.append(word)
        if word in with_value:
            new += itertools.islice(words, 1)
            continue

        # A switch takes back the opposite one before it
        earlier = switches.pop(opposite_of(word), None)
        if earlier is not None:
            new[earlier] = None
        switches[word] = len(new) - 1

    tell_new_names(context, {f"--{old}": f"--{renamed[old].name}" for old in used})
    return [word for word in new if word is not None]


def opposite_of(switch: str) -> str:
    """`--fast` -> `--no-fast`, and back."""
    name = switch.removeprefix("--no-")
    return f"--{name}" if name != switch else f"--no-{switch[2:]}"


def with_new_keys(context: typer.Context, lines: Mapping[str, object], renamed: Mapping[str, Renamed]) -> dict:
    """The lines of a YAML file by the new names of its keys."""
    new = {}
    for name, value in lines.items():
        entry = renamed.get(name, Renamed(name))

        # An option that took one of two texts is true or false now
        if entry.values:
            value = entry.truth_of(name, str(value))
        new[entry.name] = value

    used = {name: renamed[name].name for name in lines if name in renamed}
    tell_new_names(context, used)
    return new


def tell_new_names(context: typer.Context, names: Mapping[str, str]) -> None:
    """Tell in one line which old names were used, and the new ones."""
    if names:
        tell_line(context.command_path, changes_of(names))


__all__ = ["Renamed", "with_new_keys", "with_new_names"]
