"""Sets of texts by name: a corpus in the alphabet of the tokenizer, cut into blocks of equal
length."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from edlm_hf.benchmarks.paragraphs import split_into_paragraphs
from edlm_hf.data import PROTOCOLS, load_corpus
from edlm_hf.tokenization import is_text8, normalize_text8


class TextSet(NamedTuple):
    """Blocks `input_ids` of equal length, with the start token in front where the models have
    one."""

    name: str
    blocks: Dataset

    def rows(self, count: int) -> list[list[int]]:
        """`count` of the blocks at even distances, or all of them."""
        count = min(count, len(self.blocks))
        chosen = [i * len(self.blocks) // count for i in range(count)]
        return self.blocks.select(chosen)["input_ids"][:]


def named_source(text: str) -> tuple[str, str]:
    """Split `name=source`. Without a name, the set has the name of its protocol, file or dataset.

    >>> named_source("wikitext2=test.parquet"), named_source("books/test.parquet")
    (('wikitext2', 'test.parquet'), ('test', 'books/test.parquet'))
    """
    name, equals, source = text.partition("=")
    if equals:
        return name, source
    return (text if text in PROTOCOLS else Path(text).stem), text


def load_texts(text: str, tokenizer: PreTrainedTokenizerBase, split: str | None = None) -> Dataset:
    """Load the corpus of `source` or `name=source`.

    A set that is named after a protocol is cleaned like it, and the text8 alphabet is applied where
    the tokenizer has no other characters. The split is the evaluation split of the protocol, or
    "test", unless given.
    """
    alphabet = (normalize_text8,) if is_text8(tokenizer) else ()
    return load_cleaned(text, split, alphabet)


def load_paragraphs(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The paragraphs of all documents of `source` or `name=source`, cleaned as in `load_texts`."""
    paragraphs = []
    for document in load_cleaned(text, split=None)["text"]:
        paragraphs += split_into_paragraphs(document)

    # Last, since the text8 alphabet has no blank lines
    if is_text8(tokenizer):
        paragraphs = [normalize_text8(paragraph) for paragraph in paragraphs]
    return paragraphs


def load_cleaned(
    text: str,
    split: str | None,
    functions: tuple[Callable[[str], str], ...] = (),
) -> Dataset:
    """Load the corpus of `source` or `name=source`, cleaned like the protocol of its name.

    Args:
        split: unless given, the evaluation split of the protocol, or "test".
        functions: applied to every document last.
    """
    name, source = named_source(text)
    if name in PROTOCOLS and source != name and PROTOCOLS[name].clean:
        functions = (PROTOCOLS[name].clean, *functions)

    if split is None:
        split = PROTOCOLS[source].evaluation if source in PROTOCOLS else "test"
    normalize = functools.partial(apply_all, functions) if functions else None
    return load_corpus(source, split, normalize=normalize)


def apply_all(functions: tuple[Callable[[str], str], ...], text: str) -> str:
    """The functions one after the other. At the top of a module, so that other processes can load
    it."""
    for function in functions:
        text = function(text)
    return text


__all__ = ["TextSet", "load_paragraphs", "load_texts", "named_source"]
