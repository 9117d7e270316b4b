"""Tokenizers with a mask token: the text8 alphabet, sub-words of any text, or any tokenizer given one.

All are plain tokenizers of transformers. Saved beside a model, they load with `AutoTokenizer` where
edlm_hf is not installed.
"""

import json
import re
import string
from collections.abc import Iterable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edlm_hf.modeling.vocabulary import check_mask_token

START_TOKEN = "<s>"
MASK_TOKEN = "[MASK]"

TEXT8_ALPHABET = " " + string.ascii_lowercase
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Single characters and their replacements: A -> a, ..., 0 -> " zero ", ...
TEXT8_TABLE = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
TEXT8_TABLE.update({ord(str(digit)): f" {name} " for digit, name in enumerate(DIGIT_NAMES)})


def normalize_text8(text: str) -> str:
    """Write a text in the 27 symbols of text8, by the last step of Matt Mahoney's script that made text8 (wikifil.pl).

    A-Z becomes a-z, each digit its name between spaces, everything else (accented letters too) a
    space, and several spaces in a row one space. As in the script the result begins with a space and
    does not end with one, so that pieces can be joined as they are. The empty text stays empty.

    >>> normalize_text8("Room 42, please!")
    ' room four two please'
    """
    in_letters = text.translate(TEXT8_TABLE)
    spaced = re.sub("[^a-z]+", " ", f" {in_letters} ")
    return spaced[:-1]


def is_text8(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of a tokenizer, special ones aside, are the 27 symbols of text8."""
    ordinary_tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return ordinary_tokens == set(TEXT8_ALPHABET)


def text8_tokenizer(model_max_length: int = 256, start_token: bool = True) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character of the text8 alphabet.

    Ids: 0 is the space, 1 to 26 are a to z. Then come the start token "<s>" (27) if wanted, and last
    the mask token "[MASK]" (28, or 27 without a start token), so that
    `mask_token_id == vocab_size - 1`.

    Lossless over the alphabet: leading, trailing and repeated spaces survive
    `decode(..., skip_special_tokens=True)`. Outside it nothing is dropped: A-Z is read as a-z, and
    every other character (digits, line ends) as one space each. For text8's own treatment of digits
    and repeated spaces apply `normalize_text8` first.

    Args:
        model_max_length: longest row, the start token included.
        start_token: encode with "<s>" in front, as the models here are trained
            (`add_special_tokens=False` leaves it out). It is the `bos_token`, and also the
            `pad_token`, so that ragged batches can be padded. Without it there is no padding token.
    """
    # The mask is last: `mask_token_id == vocab_size - 1`, as in the published models
    symbols = list(TEXT8_ALPHABET)
    special_tokens = {"mask_token": MASK_TOKEN}
    if start_token:
        symbols.append(START_TOKEN)
        special_tokens["bos_token"] = START_TOKEN
        special_tokens["pad_token"] = START_TOKEN
    symbols.append(MASK_TOKEN)
    ids = {symbol: index for index, symbol in enumerate(symbols)}

    # WordLevel raises on a symbol it does not have, where a BPE model would silently drop it
    backend = Tokenizer(models.WordLevel(ids))
    # In this order: lowering first would turn letters like the Kelvin sign into ASCII ones
    only_letters = normalizers.Replace(Regex("[^A-Za-z]"), " ")
    backend.normalizer = normalizers.Sequence([only_letters, normalizers.Lowercase()])
    # One token per character, and no characters between them when they are joined
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()

    if start_token:
        backend.post_processor = start_token_first(ids[START_TOKEN])

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )


def start_token_first(start_id: int) -> processors.TemplateProcessing:
    """Encode a text, or two as one, behind the start token."""
    return processors.TemplateProcessing(
        single=f"{START_TOKEN} $A",
        pair=f"{START_TOKEN} $A $B:1",
        special_tokens=[(START_TOKEN, start_id)],
    )


def train_subword_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    model_max_length: int = 256,
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from texts, the kind of tokens that GPT-2 has (Sennrich et al., 2016).

    Any text is encoded without loss: bytes that no longer token covers are tokens themselves. The
    start token "<s>" has the id `vocab_size - 2` and stands in front of every encoded text; it is the
    `bos_token` and the `pad_token`. The mask token "[MASK]" is last.

    Args:
        texts: what the tokens are learned from, in pieces that fit into memory.
        vocab_size: V, both special tokens included.
        model_max_length: longest row, the start token included.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the two special tokens, or the
            texts are too short for so many tokens.
    """
    smallest = 256 + 2
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but a byte-level tokenizer needs 256 bytes and 2 special tokens: "
            f"use at least {smallest}."
        )

    # All 256 bytes are in the alphabet, so that no text is unknown
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)

    # BPE stops early where no pair of tokens is left to join
    num_learned = backend.get_vocab_size()
    if num_learned != vocab_size - 2:
        raise ValueError(
            f"The texts give only {num_learned} tokens, and vocab_size={vocab_size} needs {vocab_size - 2} beside the "
            "two special ones. Use more text, or a smaller vocab_size."
        )

    # Added after training, so that they get the last two ids
    start = AddedToken(START_TOKEN, special=True)
    mask = AddedToken(MASK_TOKEN, special=True)
    backend.add_special_tokens([start, mask])
    backend.post_processor = start_token_first(backend.token_to_id(START_TOKEN))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        mask_token=MASK_TOKEN,
        bos_token=START_TOKEN,
        pad_token=START_TOKEN,
    )


def add_mask_token(tokenizer: PreTrainedTokenizerBase, token: str = MASK_TOKEN) -> PreTrainedTokenizerBase:
    """Add `token` to a tokenizer as its mask token, under the next free id (50257 for gpt2), and return it.

    A tokenizer that has a mask token already stays as it is.

    Raises:
        ValueError: the ids have holes, and the tokenizer is not of a kind in which a free id can be chosen.
    """
    if tokenizer.mask_token is not None:
        return tokenizer

    # A new token gets the id len(tokenizer), whether or not it is free
    vocabulary = tokenizer.get_vocab()
    used_ids = set(vocabulary.values())
    if token not in vocabulary and len(tokenizer) in used_ids:
        insert_token(tokenizer, token, max(used_ids) + 1)

    mask_token = AddedToken(token, normalized=False, special=True)
    tokenizer.add_special_tokens({"mask_token": mask_token})
    return tokenizer


def insert_token(tokenizer: PreTrainedTokenizerBase, token: str, index: int) -> None:
    """Put `token` into the vocabulary of a fast tokenizer under a free id.

    Raises:
        ValueError: the tokenizer keeps no table from tokens to ids.
    """
    # BPE and WordLevel keep {token: id}. A unigram model has a list, where the place is the id
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    vocabulary = state.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise ValueError(
            f"The ids of this {type(tokenizer).__name__} have holes, and the next one ({len(tokenizer)}) belongs to a "
            "token already. Give it a mask token with an id of its own before training."
        )

    # The backend cannot be changed in place, so it is read anew
    vocabulary[token] = index
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def num_end_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the special tokens that a tokenizer puts behind a text: 1 for BERT, 0 for GPT-2."""
    ids = tokenizer("a")["input_ids"]
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = [i for i in range(len(ids)) if ids[i : i + len(text)] == text]
    return len(ids) - starts[0] - len(text) if starts else 0


def vocabulary_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the rows of a model that has one for every id: more than `len(tokenizer)` where the ids have holes."""
    return 1 + max(tokenizer.get_vocab().values())


__all__ = [
    "MASK_TOKEN",
    "START_TOKEN",
    "TEXT8_ALPHABET",
    "add_mask_token",
    "check_mask_token",
    "is_text8",
    "normalize_text8",
    "num_end_tokens",
    "text8_tokenizer",
    "train_subword_tokenizer",
    "vocabulary_rows",
]
