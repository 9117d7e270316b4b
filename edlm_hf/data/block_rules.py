"""`blocks_for`: a corpus as the rows that a model and its tokenizer need. The one rule for training and measuring.

What is not chosen is decided by the model, its tokenizer and the protocol of the corpus:

| choice | decided |
|---|---|
| `length` | the protocol's, or the model's: the shorter of the two |
| `style` | "crop" where the tokenizer has no end token or the model only a start; else the protocol's, or "wrap" |
| `start_token` | in cropped rows where the configuration of the model names one |
| `normalize_text8` | where the tokenizer has no other symbols, but not for the corpus text8, which is written in them |
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import datasets
from transformers import PreTrainedTokenizerBase

from edlm_hf.data.blocks import check_tokenizer, to_blocks
from edlm_hf.data.corpus import Corpus, load_corpus
from edlm_hf.data.protocols import PROTOCOLS
from edlm_hf.modeling.generation_config_edlm import whole_number
from edlm_hf.modeling.network_facts import longest_text
from edlm_hf.terminal import is_first_process, tell
from edlm_hf.tokenization import is_text8, normalize_text8

# Signs and letters with accents. White space and digits are read as they are meant
REPLACED = re.compile(r"[^A-Za-z0-9\s]")


@dataclass(frozen=True, kw_only=True)
class BlockRule:
    """How a corpus becomes rows.

    Attributes:
        length: L, tokens per row; None where nothing says it.
        style: of `to_blocks`.
        start_token: of `to_blocks`.
        normalize_text8: bring the text to the 27 symbols of text8.
    """

    length: int | None
    style: Literal["wrap", "crop"]
    start_token: bool
    normalize_text8: bool

    def load(
        self,
        source: str,
        split: str,
        *,
        clean: Callable[[str], str] | None = None,
        streaming: bool = False,
        text_column: str | None = None,
    ) -> Corpus:
        """Load a corpus in the alphabet of the rule. What that replaces is told on stderr.

        Args:
            source: a corpus of `load_corpus`.
            clean: applied to every document first.
        """
        options = {"streaming": streaming, "text_column": text_column}
        corpus = load_corpus(source, split, normalize=clean, **options)
        if not self.normalize_text8:
            return corpus

        # The text is counted before normalize_text8, and so loaded once more
        tell_replaced(source, corpus)
        functions = (normalize_text8,) if clean is None else (clean, normalize_text8)
        normalize = functools.partial(apply_all, functions)
        return load_corpus(source, split, normalize=normalize, **options)

    def cut(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, drop_last: bool = True) -> Corpus:
        """The rows of a corpus, as `to_blocks` makes them.

        Raises:
            ValueError: nothing says how long a row is, or what `to_blocks` refuses.
        """
        if self.length is None:
            raise ValueError("Neither the model nor the corpus says how long texts are: pass length.")
        return to_blocks(
            corpus,
            tokenizer,
            self.length,
            style=self.style,
            start_token=self.start_token,
            drop_last=drop_last,
        )


def blocks_for(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config=None,
    split: str = "train",
    *,
    length: int | None = None,
    style: Literal["wrap", "crop"] | None = None,
    start_token: bool | None = None,
    normalize_text8: bool | None = None,
    text_column: str | None = None,
) -> Corpus:
    """Load a corpus and cut it into the rows that a model is trained and measured on.

    `blocks_for("my.txt", tokenizer, model.config)` are the rows of a file. Choices that are None are
    decided by the model, its tokenizer and the corpus (docs/training.md, section 1).

    Args:
        source: a corpus of `load_corpus`: a protocol, a dataset of the Hub, or files.
        config: of the model, None for one that is still to be made.
        length: tokens of a row.
        style: `crop` or `wrap`, as in `to_blocks`.
        start_token: begin cropped rows with the start token.
        normalize_text8: write the text in the alphabet of text8.
        text_column: of `load_corpus`.
    """
    rule = block_rule(
        source,
        tokenizer,
        config,
        length=length,
        style=style,
        start_token=start_token,
        normalize_text8=normalize_text8,
    )
    return rule.cut(rule.load(source, split, text_column=text_column), tokenizer)


def block_rule(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config=None,
    *,
    length: int | None = None,
    style: Literal["wrap", "crop"] | None = None,
    start_token: bool | None = None,
    normalize_text8: bool | None = None,
) -> BlockRule:
    """Decide what is not chosen. Arguments are as in `blocks_for`.

    Raises:
        ValueError: `source` is not a text, `length` not a whole number, or `tokenizer` none of transformers.
    """
    check_tokenizer(tokenizer)
    if not isinstance(source, str):
        raise ValueError(
            f"source is a {type(source).__name__}, but it must be the name of a protocol, of a dataset of the Hub, or "
            "of a file. Several files are a folder, or a pattern such as 'books/*.txt'."
        )
    if length is not None:
        number = whole_number(length)
        if number is None:
            raise ValueError(f"length is {length!r}, but it must be a whole number of tokens.")
        length = number
    protocol = PROTOCOLS.get(source)

    # The shorter of the protocol's length and the model's
    if length is None:
        usual = None if protocol is None else protocol.length
        longest = None if config is None else longest_text(config)
        lengths = [x for x in (usual, longest) if x is not None]
        length = min(lengths, default=None)

    # A protocol that wraps cannot be followed without an end token
    if style is None:
        style = "crop"
        if can_wrap(tokenizer, config):
            style = protocol.style if protocol else "wrap"

    if start_token is None:
        start_token = getattr(config, "bos_token_id", None) is not None
    if normalize_text8 is None:
        normalize_text8 = source != "text8" and is_text8(tokenizer)

    # Wrapped rows have a start token in any case, which is not an option there
    return BlockRule(
        length=length,
        style=style,
        start_token=start_token and style == "crop",
        normalize_text8=normalize_text8,
    )


def can_wrap(tokenizer: PreTrainedTokenizerBase, config=None) -> bool:
    """Whether rows can be wrapped: the tokenizer has an end token, and the model not only a start token."""
    has_end = (tokenizer.eos_token_id, tokenizer.sep_token_id) != (None, None)

    # A model with a start token alone has seen texts that are cropped
    start_of_model = getattr(config, "bos_token_id", None)
    end_of_model = getattr(config, "eos_token_id", None)
    return has_end and (start_of_model is None or end_of_model is not None)


def evaluation_split(source: str) -> str:
    """The split whose likelihood is reported: the protocol's, or "test"."""
    return PROTOCOLS[source].evaluation if source in PROTOCOLS else "test"


def tell_replaced(source: str, corpus: Corpus) -> None:
    """Tell on stderr how many characters text8 has no symbol for. Of several processes only the first one does."""
    if not is_first_process():
        return

    # A stream is not counted, which would read all of it
    rule = "small letters and spaces alone: digits are spelled, accents and signs become spaces"
    if not isinstance(corpus, datasets.Dataset):
        tell(f"{source} is read in the 27 symbols of text8, {rule}.")
        return

    # The library caches what `map` returns, so that a corpus is counted once
    counts = corpus.map(
        count_replaced,
        input_columns="text",
        remove_columns=corpus.column_names,
    )
    num_characters = sum(counts["characters"])
    num_replaced = sum(counts["replaced"])
    if num_replaced:
        tell(
            f"{source} is read in the 27 symbols of text8, {rule}. These are {num_replaced:,} of its "
            f"{num_characters:,} characters."
        )


def count_replaced(text: str | None) -> dict[str, int]:
    """Count the characters of a text, and those that text8 has no symbol for."""
    text = text or ""
    return {"characters": len(text), "replaced": len(REPLACED.findall(text))}


def apply_all(functions: tuple[Callable[[str], str], ...], text: str) -> str:
    """Apply the functions one after the other. At the top of a module, so that other processes can load it."""
    for function in functions:
        text = function(text)
    return text


__all__ = ["BlockRule", "block_rule", "blocks_for", "can_wrap", "evaluation_split"]
