"""Texts of anybody as a part of a Markdown page, where they can write nothing but themselves."""

import re


def code_block(*lines: str, language: str = "python") -> str:
    """A block of code that none of its lines can end.

    >>> print(code_block("print(1)"))
    ```python
    print(1)
    ```
    """
    fence = "`" * max(3, longest_backticks("\n".join(lines)) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def code_span(text: str) -> str:
    """A text as code inside a line, whatever it contains.

    >>> [code_span("main"), code_span("a`b")]
    ['`main`', '`` a`b ``']
    """
    text = inline(text)
    ticks = "`" * (longest_backticks(text) + 1)
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def inline(text: str) -> str:
    """A text on one line, which may also be a cell of a table.

    >>> print(inline("two lines,\\n a | b"))
    two lines, a \\| b
    """
    return " ".join(text.split()).replace("|", "\\|")


def longest_backticks(text: str) -> int:
    """The number of backticks in the longest row of them."""
    return max(map(len, re.findall("`+", text)), default=0)


__all__ = ["code_block", "code_span", "inline"]
