"""Text from others on its way to a terminal or into a message: it must not steer the terminal or show a secret."""

import logging
import os
import re
import sys

import typer

from edlm_hf.hidden_secrets import hide_secrets

# Of names in a message
LONGEST_NAME = 200
MOST_NAMES = 50

# Characters that show a text in another order than it has
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

# Control characters have pictures from U+2400 on, except for lines and tabs, which stay
SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
SYMBOLS[0x7F] = 0x2421
# The others that a terminal obeys have none: U+FFFD stands for each of them
SYMBOLS.update(dict.fromkeys(range(0x80, 0xA0), 0xFFFD))
SYMBOLS.update({ord(character): 0xFFFD for character in DIRECTIONS})


def visible(text: str) -> str:
    """The text with a symbol in place of every character that a terminal obeys. Lines and tabs stay.

    >>> visible("\\x1b[2J")
    '␛[2J'
    """
    return text.replace("\r\n", "\n").translate(SYMBOLS)


def printable(name: str) -> str:
    """A name from a file, to quote in a message: short, and without characters that steer a terminal."""
    short = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    return short if short.isprintable() else ascii(short)


def list_names(title: str, names: list[str]) -> str:
    """List names as `title (3): a, b, c.`; of very many the first ones."""
    shown = ", ".join(printable(name) for name in names[:MOST_NAMES])
    rest = ", ..." if len(names) > MOST_NAMES else ""
    return f"{title} ({len(names)}): {shown}{rest}."


def write(text: str) -> None:
    """Write a result to the standard output, on a terminal with symbols in place of control characters."""
    if sys.stdout.isatty():
        text = visible(text)
    # Without color=True typer would cut sequences out of a piped text
    typer.echo(text, color=True)


def is_first_process() -> bool:
    """Whether this process is alone, or the first one of `torchrun`, which alone tells what all of them know."""
    # torchrun sets RANK. torch itself is not asked, because it takes seconds to import
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Write one line for the user to the standard error, without control characters and secrets."""
    # Messages of libraries have several lines
    line = " ".join(text.split())
    typer.echo(visible(hide_secrets(line)), err=True)


class QuotesSafely(logging.Filter):
    """Makes the log of a library safe to show: names that it quotes do not steer the terminal. Its own colours stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        # Text and colours in turn
        parts = re.split(r"(\x1b\[[\d;]*m)", record.getMessage())
        parts[::2] = [visible(hide_secrets(part)) for part in parts[::2]]

        record.msg = "".join(parts)
        record.args = ()
        return True


SAFE_QUOTES = QuotesSafely()  # one object, which a handler takes once


def quiet_libraries() -> None:
    """Progress bars of the libraries appear where ours do, on a terminal, and what they quote does not steer it."""
    from transformers.utils import logging as transformers_logging

    # Names in a file that somebody else wrote can hold sequences that a terminal obeys
    for handler in transformers_logging.get_logger("transformers").handlers:
        handler.addFilter(SAFE_QUOTES)

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when a command imports datasets


__all__ = ["QuotesSafely", "list_names", "printable", "quiet_libraries", "tell", "visible", "write"]
