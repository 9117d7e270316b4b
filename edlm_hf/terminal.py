"""What may reach a terminal: a text of anybody that steers nothing there."""

import logging
import re
import sys

import typer

from edlm_hf.modeling.hidden_secrets import hide_secrets

KEPT = "\n\t"
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they show a text in another order than it has
SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in KEPT}
SYMBOLS |= {0x7F: "\u2421"}
SYMBOLS |= dict.fromkeys((*range(0x80, 0xA0), *map(ord, DIRECTIONS)), "\ufffd")


def visible(text: str) -> str:
    """The text with a symbol in place of every character that a terminal obeys; lines and tabs stay.

    >>> visible("\\x1b[2J")
    '␛[2J'
    """
    return text.replace("\r\n", "\n").translate(SYMBOLS)


def write(text: str) -> None:
    """Write a result to the standard output: as it is, or so that it steers nothing where that is a terminal."""
    typer.echo(visible(text) if sys.stdout.isatty() else text, color=True)  # else sequences in a file would be cut out


def tell(text: str) -> None:
    """Write a line for the user to the standard error: what it quotes steers no terminal and is no secret."""
    typer.echo(visible(hide_secrets(" ".join(text.split()))), err=True)


class QuotesSafely(logging.Filter):
    """For the log of a library: what it quotes, as the names of weights, steers no terminal. Its own colours stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        parts = re.split(r"(\x1b\[[\d;]*m)", record.getMessage())  # every second one is a colour
        record.msg = "".join(part if i % 2 else visible(hide_secrets(part)) for i, part in enumerate(parts))
        record.args = ()
        return True


__all__ = ["QuotesSafely", "tell", "visible", "write"]
