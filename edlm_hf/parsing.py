"""Texts of flags and settings turned into values: names, numbers, and NAME=VALUE."""


def names(text: str) -> tuple[str, ...]:
    """`mdlm,ar` -> ("mdlm", "ar")."""
    return tuple(part.strip() for part in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """`16,64` -> (16, 64).

    Raises:
        ValueError: a part is not a whole number.
    """
    try:
        return tuple(map(int, names(text)))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers like 16,64.") from None


def name_and_value(text: str) -> tuple[str, bool | int | float | str | tuple]:
    """`distance=8` -> ("distance", 8).

    A value with a comma is a tuple: `remasking-window=0.2,0.8` -> ("remasking_window", (0.2, 0.8)).

    Raises:
        ValueError: the text does not have this form.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise ValueError(f"{text!r} is not of the form NAME=VALUE, such as distance=8.")

    # Parameters have underscores in Python, and hyphens on the command line
    parameter = name.strip().replace("-", "_")
    parts = tuple(value_of(part) for part in names(value))
    if len(parts) == 1:
        return parameter, parts[0]
    return parameter, parts


def value_of(text: str) -> bool | int | float | str:
    """`true` -> True, `8` -> 8, `0.5` -> 0.5, and any other text as it is."""
    if text in ("true", "false"):
        return text == "true"

    # `8` is an int, since a float would be refused where a number of positions is meant
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


__all__ = ["name_and_value", "names", "numbers", "value_of"]
