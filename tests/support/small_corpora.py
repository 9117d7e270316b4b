"""Corpora of a few short documents, on disk and streaming, and a tokenizer of five words."""

import random

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<s>", "</s>", "[PAD]", "a", "b", "c", "d", "e"]
S, E, P, A, B, C, D, F = range(len(WORDS))  # F is the word e


def word_tokenizer(**special):
    """One token per word. Start and end token are different, unlike GPT-2's."""
    backend = Tokenizer(
        models.WordLevel(
            {word: index for index, word in enumerate(WORDS)},
            unk_token="e",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def corpus(*texts, streaming=False):
    dataset = datasets.Dataset.from_dict({"text": [*texts, "not read"]})
    return dataset.to_iterable_dataset().take(len(texts)) if streaming else dataset.select(range(len(texts)))


def random_corpus(count, alphabet, seed=0):
    generator = random.Random(seed)
    return ["".join(generator.choices(alphabet, k=generator.choice([0, 1, 5, 40]))) for _ in range(count)]


def rows(dataset, column="input_ids"):
    return [row[column] for row in dataset]


KINDS = pytest.mark.parametrize("streaming", [False, True], ids=["on_disk", "streaming"])
