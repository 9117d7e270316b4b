"""Paragraphs with hidden words: which words can be hidden, and which of them were found again."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# Letters with neither a letter, a digit, a hyphen nor an apostrophe beside them
WORD = re.compile(r"(?<![\w'’-])[^\W\d_]+(?![\w'’-])")
BLANK_LINES = re.compile(r"\n\s*\n")

# A paragraph has so many words for each one that is hidden, so that most of it stays visible
WORDS_PER_HIDDEN_WORD = 4


@dataclass(frozen=True)
class Paragraph:
    """Token ids of a paragraph, and its hidden words as ranges of tokens (begin, end)."""

    ids: list[int]
    hidden: list[tuple[int, int]]

    def masked(self, mask_token_id: int) -> list[int]:
        """The ids with a mask for every token of a hidden word.

        >>> Paragraph([5, 6, 7, 8], [(1, 3)]).masked(0)
        [5, 0, 0, 8]
        """
        ids = list(self.ids)
        for begin, end in self.hidden:
            ids[begin:end] = [mask_token_id] * (end - begin)
        return ids

    def words(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The texts that `ids` have in place of the hidden words."""
        return [tokenizer.decode(ids[begin:end]) for begin, end in self.hidden]


def split_into_paragraphs(document: str) -> list[str]:
    """The paragraphs of a document, between blank lines, each on one line.

    >>> split_into_paragraphs("One\\nline.\\n\\n Two. ")
    ['One line.', 'Two.']
    """
    paragraphs = [" ".join(part.split()) for part in BLANK_LINES.split(document)]
    return [paragraph for paragraph in paragraphs if paragraph]


def hide_words(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    num_words: int,
    longest: int,
    seed: int,
) -> list[Paragraph]:
    """Choose `count` of the texts, and `num_words` words of each, uniformly at random.

    Args:
        longest: the most tokens of a paragraph.
        seed: the same seed and texts give the same choice.

    Raises:
        ValueError: the tokenizer does not say where its tokens are in a text, or too few texts are
            short enough and have enough words.
    """
    if not tokenizer.is_fast:
        raise ValueError("The tokenizer does not say where its tokens are in a text: give one that is fast.")

    # A generator of its own: the choice does not depend on what was drawn before
    choice = random.Random(seed)
    order = list(range(len(texts)))
    choice.shuffle(order)

    paragraphs = []
    for i in order:
        if len(paragraphs) == count:
            break
        # Not verbose: a paragraph may be longer than the model
        encoded = tokenizer(
            texts[i],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids = encoded["input_ids"]
        words = ranges_of_words(texts[i], encoded["offset_mapping"])

        # Sorted, so that hidden words stand in the order of the text
        fits = len(ids) <= longest
        if fits and len(words) >= WORDS_PER_HIDDEN_WORD * num_words:
            hidden = sorted(choice.sample(words, num_words))
            paragraphs.append(Paragraph(ids, hidden))

    if len(paragraphs) < count:
        raise ValueError(
            f"Only {len(paragraphs)} of {len(texts)} paragraphs have at most {longest} tokens and at least "
            f"{WORDS_PER_HIDDEN_WORD * num_words} words, but {count} are asked for: ask for fewer, or give more text."
        )
    return paragraphs


def ranges_of_words(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens (begin, end) of every word whose tokens hold the word alone, or it and the space before it.

    Args:
        offsets: where every token is in the text, (first letter, last letter + 1).

    >>> ranges_of_words("see it, 2", [(0, 3), (3, 6), (6, 7), (7, 9)])
    [(0, 1), (1, 2)]
    """
    ranges = []
    token = 0
    for match in WORD.finditer(text):
        # 1. The tokens that share a letter with the word
        while token < len(offsets) and offsets[token][1] <= match.start():
            token += 1
        end = token
        while end < len(offsets) and offsets[end][0] < match.end():
            end += 1
        if token == end:
            continue

        # 2. They may begin with a space, but must not hold anything else
        before = text[offsets[token][0] : match.start()]
        after = text[match.end() : offsets[end - 1][1]]
        if before in ("", " ") and after == "":
            ranges.append((token, end))
    return ranges


__all__ = ["WORDS_PER_HIDDEN_WORD", "Paragraph", "hide_words", "split_into_paragraphs"]
