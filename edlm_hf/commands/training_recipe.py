"""From flags and a recipe (YAML) to the dataclasses of a training command."""

import argparse
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, set_seed
from transformers.hf_argparser import string_to_bool

from edlm_hf.adapter_loading import base_of_adapter
from edlm_hf.commands.command import tell_line
from edlm_hf.files import read_options
from edlm_hf.hidden_secrets import hide_in_command, hide_secrets, hide_shapes, is_secret_name
from edlm_hf.loading import load_config
from edlm_hf.old_names import OLD_NAMES, changes_of
from edlm_hf.terminal import visible

# Defaults that differ from those of transformers, and learn on a small text
LOGGING_STEPS = 10
NETWORK_RATE = 3e-4
SMALL_PARTS_RATE = 1e-3


class Flags(HfArgumentParser):
    """The flags of a command. Neither its help, which shows the recipe, nor its errors show a secret."""

    secrets: tuple[str, ...] = ()  # of the recipe

    def __init__(self, command: Callable, classes: tuple[type, ...]):
        # The first clause of the docstring describes the command, and the rest is for callers in Python
        self.command = f"edlm {command.__name__.replace('_', '-')}"
        super().__init__(
            classes,
            prog=self.command,
            usage=f"{self.command} [RECIPE.yaml] [--FLAG VALUE ...]",
            description=command.__doc__.partition(";")[0] + ". Flags override the recipe.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.options = {action.dest: action for action in self._actions}

        # Name of an option -> the types that its values may have
        self.kinds = {}
        for of_options in classes:
            hints = get_type_hints(of_options)
            self.kinds.update((name, kinds_of(hint)) for name, hint in hints.items())

        # Two runs must not meet in a folder that nobody named
        self.options["output_dir"].required = True

        # No default for the rate yet: `choose_learning_rate` finds one when it is known what is trained
        self.set_defaults(logging_steps=LOGGING_STEPS, learning_rate=None)
        self.options["learning_rate"].help = (
            f"Of AdamW at its highest; {SMALL_PARTS_RATE:g} for low-rank updates, adapters and heads, and "
            f"{NETWORK_RATE:g} for whole networks, unless given."
        )

        # `--start_token` alone is true, also where it is decided unless given
        for option in self._actions:
            if option.type is string_to_bool:
                option.nargs = "?"
                option.const = True

    def format_help(self) -> str:
        """As usual. A default of the recipe that looks like a secret is hidden."""
        return visible(hide_shapes(super().format_help()))

    def tell_new_names(self, old: list[str]) -> None:
        """Tell in one line which old names of flags or keys were used, and the new ones."""
        if old:
            tell_line(self.command, changes_of({name: OLD_NAMES[name] for name in old}))

    def error(self, message: str):
        """As usual: the message and exit code 2, without the secrets of the recipe."""
        super().error(visible(hide_secrets(message, self.secrets)))


def parse(command: Callable, classes: tuple[type, ...], arguments: list[str]) -> tuple:
    """Make dataclasses of flags; a first argument that is not a flag is a YAML file with the defaults.

    Whatever is not a flag of the command, in the file or after it, or has a value of another type, ends the program
    with exit code 2. The seed is set: new weights are those of the seed.

    Args:
        command: the function, after which messages and the help are named.
        classes: dataclasses, the last one of training arguments.
    """
    # 1. The recipe gives defaults, so that flags override it
    parser = Flags(command, classes)
    if arguments and not arguments[0].startswith("-"):
        arguments = with_recipe(parser, arguments[0], arguments[1:])

    # 2. The flags
    arguments = with_new_flags(parser, arguments)
    choose_learning_rate(parser, arguments)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        arguments,
        return_remaining_strings=True,
        look_for_args_file=False,
    )
    if unknown:
        parser.error(f"there is no {' '.join(unknown)}; --help lists the flags.")
    args = parsed[-1]
    if not args.output_dir:
        parser.error("output_dir is empty. Give a folder, which may be a new one.")
    if Path(args.output_dir).is_file():
        parser.error(f"output_dir is {args.output_dir}, which is a file. Give a folder, which may be a new one.")
    args.resume_from_checkpoint = checkpoint_to_resume(parser, args.resume_from_checkpoint)

    # 3. From here on nothing that writes down how it was called, such as a card or a logger, sees a secret
    named_as_secrets = [value for name, value in vars(args).items() if is_secret_name(name)]
    secrets = [value for value in named_as_secrets if isinstance(value, str)]
    sys.argv[1:] = hide_in_command(sys.argv[1:], secrets)
    set_seed(args.seed)
    return tuple(parsed)


def with_new_flags(parser: Flags, arguments: list[str]) -> list[str]:
    """The arguments with the new names of flags, whose old ones are told in one line."""
    new = []
    used = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in OLD_NAMES:
            used.append(name)
            word = f"--{OLD_NAMES[name]}{equals}{value}"
        new.append(word)
    parser.tell_new_names(used)
    return new


def choose_learning_rate(parser: Flags, arguments: list[str]) -> None:
    """Make a learning rate that suits what is trained the default, unless the flags or the recipe have one."""
    if parser.get_default("learning_rate") is not None:  # of the recipe
        return
    flags, unknown = parser.parse_known_args(arguments)
    # What is unknown is refused in a moment, and a rate that is given needs no look at the model
    if unknown or flags.learning_rate is not None:
        return

    # Only the flags of `train-drafts` have a width, and only those of `train-energy` an adapter
    is_draft_head = hasattr(flags, "draft_width")
    is_small = is_draft_head or (hasattr(flags, "adapter") and is_small_energy(flags))
    rate = SMALL_PARTS_RATE if is_small else NETWORK_RATE
    parser.set_defaults(learning_rate=rate)


def is_small_energy(flags: argparse.Namespace) -> bool:
    """Whether an adapter, or low-rank updates or a head on a denoiser, are all of an energy that is trained."""
    # A new energy
    if flags.model is None:
        return flags.energy != "full"

    # An energy that goes on: a new adapter, an adapter from before, or one that shares the denoiser
    if flags.adapter or base_of_adapter(flags.model, {}) is not None:
        return True
    return getattr(load_config(flags.model), "energy_weights", "own") == "shared"


def with_recipe(parser: Flags, file: str, arguments: list[str]) -> list[str]:
    """Make the lines of a YAML file the defaults of the parser, and return the arguments to parse."""
    try:
        recipe = read_options(file)
    except ValueError as error:
        parser.error(str(error))
    parser.tell_new_names([name for name in recipe if name in OLD_NAMES])
    recipe = {OLD_NAMES.get(name, name): value for name, value in recipe.items()}
    unknown = set(recipe) - set(parser.options)
    if unknown:
        parser.error(f"{file} sets {', '.join(sorted(unknown))}, which {parser.command} does not have.")

    # A flag that the recipe gives need not be given again
    for name in recipe:
        parser.options[name].required = False

    # Secrets become flags: the help would show them as defaults
    given = {name: value for name, value in recipe.items() if value is not None}
    secrets = {name: str(value) for name, value in given.items() if is_secret_name(name)}
    parser.secrets = tuple(secrets.values())

    # argparse converts and checks defaults that are text
    defaults = {}
    for name, value in recipe.items():
        if name not in secrets:
            check_kind(parser, file, name, value)
            defaults[name] = default_of(value, parser.kinds.get(name, set()))
    parser.set_defaults(**defaults)

    # In front, so that a flag that was typed overrides the one of the recipe
    secret_flags = [f"--{name}={value}" for name, value in secrets.items()]
    return [*secret_flags, *arguments]


def default_of(value, kinds: set[type]):
    """The value of a line as argparse takes it. YAML reads `no` as false, also where an option has it for a word."""
    if isinstance(value, (list, dict, NoneType)):
        return value
    words = [word.value for kind in kinds if issubclass(kind, Enum) for word in kind]
    if value is False and "no" in words:
        return "no"
    return str(value)


def check_kind(parser: Flags, file: str, name: str, value) -> None:
    """End the program if a line of a recipe holds a list, names with values or nothing where the option has none."""
    # Text and numbers are for argparse to check, which converts them
    if not isinstance(value, (list, dict, NoneType)) or type(value) in parser.kinds[name]:
        return
    if value is not None:
        parser.error(f"{file} sets {name} to {value!r}, but it takes a single value; --help lists the flags.")

    default = parser.get_default(name)
    if default is not None:
        parser.error(f"{file} gives {name} no value. Write one, or leave the line out, which means {default!r}.")


def kinds_of(hint) -> set[type]:
    """The types that a type hint names: `list[str] | None` -> {list, NoneType}."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(part) or part for part in parts}


def checkpoint_to_resume(parser: Flags, given: str | None) -> str | bool | None:
    """Read `resume_from_checkpoint`: a path, or True for the newest checkpoint of the folder."""
    word = str(given).lower()
    if word == "false":
        parser.error(
            f"resume_from_checkpoint is {given}, but a run always goes on from the newest checkpoint in its "
            "output_dir. Leave it out, and give another output_dir to begin anew."
        )
    return True if word == "true" else given
