"""Texts to one array of token ids, by a table of bytes for the alphabet of text8."""

import json
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from edlm_hf.tokenization import TEXT8_ALPHABET, text8_tokenizer


class Encoder:
    """Texts to one array of ids, every text followed by `separator` unless that is None.

    Attributes:
        dtype: of the ids, the smallest that holds the vocabulary.
        table: the id of each of 256 bytes for a text8 tokenizer, else None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: int | None):
        self.tokenizer = tokenizer
        self.separator = separator

        # uint16 for the 50,257 tokens of GPT-2: a corpus takes two bytes per token
        largest_id = max(tokenizer.get_vocab().values())
        self.dtype = np.min_scalar_type(largest_id).name
        self.table = text8_table(tokenizer) if self.dtype == "uint8" else None

    def __call__(self, texts: list[str | None]) -> np.ndarray:
        """The ids of all texts, one after the other, (n,). A missing text is empty."""
        texts = [text or "" for text in texts]
        return self.by_tokenizer(texts) if self.table is None else self.by_table(texts)

    def by_table(self, texts: list[str]) -> np.ndarray:
        """The ids of a text8 tokenizer, by a table of bytes. Characters that are not ASCII are read as "?", a space."""
        separator = b"" if self.separator is None else bytes([self.separator])

        # One byte per character, and so one id
        parts = []
        for text in texts:
            ids = text.encode("ascii", "replace").translate(self.table)
            parts.append(ids + separator)
        return np.frombuffer(b"".join(parts), np.uint8)

    def by_tokenizer(self, texts: list[str]) -> np.ndarray:
        """The ids of any tokenizer. Text that spells a special token stays text."""
        separator = [] if self.separator is None else [self.separator]
        ids = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

        # (n,), filled without a list of all ids
        count = sum(map(len, ids)) + len(separator) * len(ids)
        stream = chain.from_iterable(chain(row, separator) for row in ids)
        return np.fromiter(stream, self.dtype, count)

    def state(self) -> str:
        """Everything that decides the ids, the same before and after the tokenizer is used."""
        rules = backend_rules(self.tokenizer) or python_rules(self.tokenizer)
        parts = [type(self.tokenizer).__name__, rules, self.separator]
        return json.dumps(parts, sort_keys=True, default=str)


def backend_rules(tokenizer: PreTrainedTokenizerBase) -> dict | None:
    """The parts of a fast tokenizer that decide its ids, without padding and truncation, which calls change."""
    if not tokenizer.is_fast:
        return None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: state[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}


def python_rules(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What decides the ids of a tokenizer in Python, as far as it can be seen: vocabulary, arguments and options."""
    options = {}
    for name, value in vars(tokenizer).items():
        if isinstance(value, (bool, int, float, str)):
            options[name] = value
    return {
        "vocabulary": tokenizer.get_vocab(),
        "arguments": tokenizer.init_kwargs,
        "options": options,
    }


def text8_table(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """The id of each of 256 bytes, for `bytes.translate`.

    None unless the tokenizer has the rules of `text8_tokenizer`.
    """
    # Ids may be in another order, but text has to be read in the same way
    text8_rules = backend_rules(text8_tokenizer())
    rules = backend_rules(tokenizer)
    if rules is None:
        return None
    for name in ("normalizer", "pre_tokenizer"):
        if rules[name] != text8_rules[name]:
            return None

    # A word that was added is one token, where the table would spell it
    if not all(token["special"] for token in rules["added_tokens"]):
        return None

    # Letters in either case have their id, everything else is a space
    space, *letters = tokenizer.convert_tokens_to_ids(list(TEXT8_ALPHABET))
    table = bytearray([space]) * 256
    for letter, token_id in zip(TEXT8_ALPHABET[1:], letters, strict=True):
        table[ord(letter)] = token_id
        table[ord(letter.upper())] = token_id
    return bytes(table)
