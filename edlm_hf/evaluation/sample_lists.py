"""Samples as a user gives them: read as a list, and quoted in messages."""

from collections.abc import Iterable


def as_list(samples: Iterable, name: str) -> list:
    """Samples as a list, tensors and arrays as lists of lists.

    Args:
        name: of the argument, for messages.

    Raises:
        ValueError: there are none, or a single one was passed.
    """
    if not isinstance(samples, Iterable):
        raise ValueError(f"{name} is {samples!r}, but a list of them is needed.")

    # Plain numbers, since elements of tensors are not equal as keys of a count
    rows = [sample.tolist() if hasattr(sample, "tolist") else sample for sample in samples]
    if not rows:
        raise ValueError(f"{name} is empty, but at least one is needed.")

    # One text is a sequence of characters, and one row of ids a sequence of numbers
    if isinstance(samples, str) or isinstance(rows[0], int):
        raise ValueError(f"{name} is a single one ({excerpt(str(samples))}), but a list of them is needed: [{name}].")
    return rows


def check_texts(texts: list) -> None:
    """Raise ValueError unless all samples are texts."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is a {type(text).__name__}, but a text is needed: decode token ids first.")


def excerpt(text: str, length: int = 40) -> str:
    """The beginning of a text in quotes."""
    return repr(text) if len(text) <= length else f"{text[:length]!r}..."
