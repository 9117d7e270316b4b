"""Texts of anybody on their way to a terminal or into a message, where they steer nothing and show no secret."""

import logging
import re
import sys

import typer

from edlm_hf.hidden_secrets import hide_secrets

LONGEST_NAME = 200  # in a message
MOST_NAMES = 50

KEPT = "\n\t"
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they show a text in another order than it has
SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in KEPT}
SYMBOLS[0x7F] = 0x2421
SYMBOLS |= dict.fromkeys((*range(0x80, 0xA0), *map(ord, DIRECTIONS)), 0xFFFD)


def visible(text: str) -> str:
    """The text with a symbol in place of every character that a terminal obeys. Lines and tabs stay.

    >>> visible("\\x1b[2J")
    '␛[2J'
    """
    return text.replace("\r\n", "\n").translate(SYMBOLS)


def printable(name: str) -> str:
    """A name that a file gives, as a message can quote it: short, and without characters that steer a terminal."""
    short = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    return short if short.isprintable() else ascii(short)


def list_names(title: str, names: list[str]) -> str:
    """`title (3): a, b, c.`, of very many names the first ones."""
    shown = ", ".join(map(printable, names[:MOST_NAMES]))
    rest = ", ..." if len(names) > MOST_NAMES else ""
    return f"{title} ({len(names)}): {shown}{rest}."


def write(text: str) -> None:
    """Write a result to the standard output: as it is, or so that it steers nothing where that is a terminal."""
    if sys.stdout.isatty():
        text = visible(text)
    typer.echo(text, color=True)  # without this, typer would cut sequences out of what is piped


def tell(text: str) -> None:
    """Write a line for the user to the standard error: what it quotes steers no terminal and is no secret."""
    typer.echo(visible(hide_secrets(" ".join(text.split()))), err=True)


class QuotesSafely(logging.Filter):
    """For the log of a library: what it quotes, as the names of weights, steers no terminal. Its own colours stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        # Every second part is a colour
        parts = re.split(r"(\x1b\[[\d;]*m)", record.getMessage())
        parts[::2] = [visible(hide_secrets(part)) for part in parts[::2]]

        record.msg = "".join(parts)
        record.args = ()
        return True


__all__ = ["QuotesSafely", "list_names", "printable", "tell", "visible", "write"]
