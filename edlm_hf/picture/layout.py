"""Where the tokens of a text stand in a picture: lines of columns that all states of a generation share.

A column is as wide as one letter of a monospaced font. A token has the same place in all states, so
that a mask is as wide as the text that replaces it.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

# No XML file may hold these, whatever escapes them
FORBIDDEN = re.compile("[^\\t\\n\\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE_END = "↵"


class Place(NamedTuple):
    """Where a token stands.

    Args:
        line: its line.
        column: its first column.
        width: its columns.
        indent: 1 if the first of them is the space in front of a word, otherwise 0.
    """

    line: int
    column: int
    width: int
    indent: int


def drawable(text: str) -> str:
    """The text as a picture can hold it: on one line, with a symbol for every line end.

    >>> drawable("a\\tb\\n")
    'a b↵'
    """
    text = text.replace("\n", LINE_END).replace("\t", " ")
    return FORBIDDEN.sub("\ufffd", text)


def width_of(text: str) -> int:
    """Count the columns of a text: two for a wide character, none for an accent that joins another.

    >>> width_of("ab"), width_of("文字"), width_of("e\\u0301")
    (2, 4, 1)
    """
    width = 0
    for character in text:
        if unicodedata.east_asian_width(character) in "WF":
            width += 2
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf"):
            width += 1
    return width


def places(texts: Sequence[str], widths: Sequence[int], columns: int) -> list[Place]:
    """Place the tokens of a text on lines, broken before words where a word fits on a line.

    The space of a token that begins a line is left out, and one at the end of a line may stand
    outside it. A token that is longer than a line has a line of its own.

    Args:
        texts: of the tokens as they are at last, which say where words begin.
        widths: columns of every token.
        columns: of a line.

    >>> [place.line for place in places(["one", " two", " three"], [3, 4, 6], columns=8)]
    [0, 0, 1]
    """
    result = []
    line = column = 0
    for word in words_of(texts):
        # 1. A word that does not fit begins a line. A space at its end may stand outside
        columns_of_word = sum(widths[i] for i in word)
        columns_of_word -= ends_with_space(texts[word[-1]])
        if column > 0 and column + columns_of_word > columns:
            line += 1
            column = 0

        # 2. Its tokens, on several lines if it is longer than one
        for i in word:
            end = column + widths[i] - ends_with_space(texts[i])
            if column > 0 and end > columns:
                line += 1
                column = 0

            # A line does not begin with the space in front of a word
            indent = begins_word(texts[i])
            if column > 0:
                place = Place(line, column, widths[i], indent)
            else:
                place = Place(line, column, widths[i] - indent, 0)
            result.append(place)
            column += place.width
    return result


def words_of(texts: Sequence[str]) -> list[list[int]]:
    """The indices of tokens, those of a word together. Tokens of spaces alone end the word before them."""
    # The first list takes tokens of spaces at the very beginning, and may stay empty
    words = [[]]
    after_space = False
    for i, text in enumerate(texts):
        is_word = text.strip(" ") != ""
        if is_word and (after_space or begins_word(text)):
            words.append([])
        words[-1].append(i)

        # Special tokens have no text
        if text:
            after_space = text.endswith((" ", LINE_END))
    return [word for word in words if word]


def begins_word(text: str) -> int:
    """1 for a space with a word after it, otherwise 0."""
    return int(text.startswith(" ") and text.strip(" ") != "")


def ends_with_space(text: str) -> int:
    """1 for a text that ends with a space, otherwise 0."""
    return int(text.endswith(" "))


__all__ = ["Place", "drawable", "places", "width_of"]
