"""Settings: dataclasses whose fields say all that a command has to know of them.

A field has its default, help, bounds and old names in one place. `edlm_hf.commands.options` makes flags and YAML keys
of it. Nothing heavy is imported here, so that the help of a command is quick.
"""

import dataclasses
from collections.abc import Callable, Mapping

# Precisions of networks, by their names in torch
DTYPES = ("float32", "bfloat16", "float16")


def option(
    default=dataclasses.MISSING,
    *,
    help: str,
    default_factory=dataclasses.MISSING,
    flag: str | None = None,
    shown: str | None = None,
    min: float | None = None,
    max: float | None = None,
    parser: Callable[[str], object] | None = None,
    metavar: str | None = None,
    repeated: bool = False,
    positional: bool = False,
    old: tuple[str, ...] = (),
    old_values: Mapping[str, bool] | None = None,
) -> dataclasses.Field:
    """A field of settings that is also an option of a command.

    Args:
        default, default_factory: of the dataclass. Without them the option is required.
        help: one line for the help of the command.
        flag: the name of the flag, with hyphens, where it is not that of the field.
        shown: what the help shows as the default where the value says nothing to a reader, as None does.
        min, max: least and largest value of a flag.
        parser: makes the value of the text of a flag, and raises ValueError. Of a repeated flag, of each text.
        metavar: stands for the value in the help.
        repeated: the flag may be given several times, each with one element of the tuple.
        positional: an argument without a flag.
        old: earlier names of the flag.
        old_values: texts that an earlier name took, where the option is true or false now.
    """
    # All arguments but those of the dataclass become its metadata, by the same names
    given = {name: value for name, value in locals().items() if name not in ("default", "default_factory")}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=given)
    return dataclasses.field(default=default, metadata=given)


def check_dtype(dtype: str, allowed: tuple[str, ...] = DTYPES) -> None:
    """Raise ValueError unless `dtype` is one of the allowed precisions."""
    if dtype not in allowed:
        raise ValueError(f"dtype is {dtype!r}, but it must be one of {', '.join(allowed)}.")


def existing_device(device: str) -> str:
    """Return the name of a device that is there.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    # RuntimeError for a name that torch does not know, and for one that this build has no module of
    try:
        index = torch.device(device).index or 0
        exists = index < torch.get_device_module(device).device_count()
    except RuntimeError:
        exists = False
    if not exists:
        raise ValueError(f"There is no device {device!r} here.")
    return device


def default_device() -> str:
    """Return cuda, or cpu where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_option() -> dataclasses.Field:
    """The device of a command."""
    return option(
        default_factory=default_device,
        shown="cuda if there is one",
        parser=existing_device,
        help="cpu, cuda, cuda:1, ...",
    )


__all__ = ["DTYPES", "check_dtype", "default_device", "device_option", "existing_device", "option"]
