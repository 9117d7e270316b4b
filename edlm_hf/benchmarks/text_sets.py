"""Sets of texts by name: a corpus in the alphabet of the tokenizer, cut into blocks of equal length."""

from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from edlm_hf.benchmarks.paragraphs import split_into_paragraphs
from edlm_hf.data import PROTOCOLS, block_rule, load_corpus
from edlm_hf.data.block_rules import evaluation_split
from edlm_hf.tokenization import normalize_text8


class TextSet(NamedTuple):
    """Blocks `input_ids` of equal length, with the start token in front where the models have one."""

    name: str
    blocks: Dataset

    def rows(self, count: int) -> list[list[int]]:
        """`count` of the blocks at even distances, or all of them."""
        # Even distances, because neighbouring blocks can come from one document
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

    # `wikitext2`, else the last part of a path or of a name on the Hub, without its ending
    if text in PROTOCOLS:
        return text, text
    return Path(text).stem, text


def load_texts(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    split: str | None = None,
    text_column: str | None = None,
) -> Dataset:
    """Load the corpus of `source` or `name=source`.

    A set that is named after a protocol is cleaned like it, and the text8 alphabet is applied where the tokenizer has
    no other characters.

    Args:
        split: the evaluation split of the protocol, or "test", unless given.
        text_column: of `load_corpus`. A protocol knows its own.
    """
    _, source = named_source(text)
    rule = block_rule(source, tokenizer)
    return rule.load(source, split or evaluation_split(source), **reading_of(text, text_column))


def load_blocks(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    config,
    length: int,
    style: str | None = None,
    text_column: str | None = None,
) -> TextSet:
    """Load the corpus of `source` or `name=source` as in `load_texts`, and cut it into blocks of `length` tokens.

    Args:
        style: of `block_rule`.
        text_column: of `load_texts`.
    """
    name, source = named_source(text)
    rule = block_rule(source, tokenizer, config, length=length, style=style)
    corpus = rule.load(source, evaluation_split(source), **reading_of(text, text_column))
    return TextSet(name, rule.cut(corpus, tokenizer))


def load_paragraphs(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str | None = None,
) -> list[str]:
    """The paragraphs of all documents of `source` or `name=source`, cleaned as in `load_texts`."""
    _, source = named_source(text)
    reading = reading_of(text, text_column)
    corpus = load_corpus(
        source,
        evaluation_split(source),
        normalize=reading["clean"],
        text_column=reading["text_column"],
    )

    # A document has its paragraphs between blank lines
    paragraphs = []
    for document in corpus["text"]:
        paragraphs += split_into_paragraphs(document)

    # Last, since the text8 alphabet has no blank lines
    if block_rule(source, tokenizer).normalize_text8:
        paragraphs = [normalize_text8(paragraph) for paragraph in paragraphs]
    return paragraphs


def reading_of(text: str, text_column: str | None) -> dict:
    """Arguments of `BlockRule.load` for a set of texts: how its documents are cleaned, and in which column they are."""
    name, source = named_source(text)

    # A protocol itself is cleaned when it loads, and knows its column
    cleaned_like = PROTOCOLS.get(name) if name != source else None
    return {
        "clean": None if cleaned_like is None else cleaned_like.clean,
        "text_column": None if source in PROTOCOLS else text_column,
    }


__all__ = ["TextSet", "load_blocks", "load_paragraphs", "load_texts", "named_source"]
