"""Texts of others as a part of a Markdown page: whatever they contain, they stay texts."""

import re


def code_block(*lines: str, language: str = "python") -> str:
    """Make a block of code that none of its lines can end.

    >>> print(code_block("print(1)"))
    ```python
    print(1)
    ```
    """
    # A longer fence than any row of backticks inside, and at least three
    longest = longest_backticks("\n".join(lines))
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def code_span(text: str) -> str:
    """Write a text as code inside a line, whatever it contains.

    >>> [code_span("main"), code_span("a`b")]
    ['`main`', '`` a`b ``']
    """
    text = inline(text)

    # Text that holds backticks stands between more of them and spaces, which are not shown
    ticks = "`" * (longest_backticks(text) + 1)
    if len(ticks) == 1:
        return f"`{text}`"
    return f"{ticks} {text} {ticks}"


def inline(text: str) -> str:
    """Write a text on one line, which may also be a cell of a table.

    >>> print(inline("two lines,\\n a | b"))
    two lines, a \\| b
    """
    line = " ".join(text.split())
    return line.replace("|", "\\|")


def longest_backticks(text: str) -> int:
    """Count the backticks in the longest row of them."""
    rows = re.findall("`+", text)
    return max(map(len, rows), default=0)


__all__ = ["code_block", "code_span", "inline"]
