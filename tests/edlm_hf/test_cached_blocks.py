"""Rows that were made once are read from the cache, and a stream of rows goes on from its state."""

import json
import string
import subprocess
import sys

import datasets
import pytest
from small_corpora import corpus, random_corpus, rows, word_tokenizer
from transformers import PreTrainedTokenizer

from edlm_hf.data import blocks, load_corpus, to_blocks
from edlm_hf.tokenization import TEXT8_ALPHABET, normalize_text8, text8_tokenizer

pytestmark = pytest.mark.usefixtures("quiet_datasets")


class LetterTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python: one token per letter, small letters if asked for."""

    def __init__(self, lower=False, **options):
        self.lower = lower
        super().__init__(unk_token="a", bos_token="a", eos_token="a", pad_token="a", **options)

    @property
    def vocab_size(self):
        return 52

    def get_vocab(self):
        return {letter: i for i, letter in enumerate(string.ascii_letters)}

    def _tokenize(self, text):
        return list(text.lower() if self.lower else text)

    def _convert_token_to_id(self, token):
        return self.get_vocab()[token]

    def _convert_id_to_token(self, index):
        return string.ascii_letters[index]


def test_rows_of_a_tokenizer_with_another_option_are_made_anew():
    texts = corpus("AbCd")
    small = LetterTokenizer(lower=True)
    assert rows(to_blocks(texts, small, 4, style="crop")) == [[0, 1, 2, 3]]
    assert rows(to_blocks(texts, LetterTokenizer(), 4, style="crop")) == [[26, 1, 28, 3]]

    # Using it changes nothing, and an option that is set afterwards counts
    state = blocks.Encoder(small, separator=None).state()
    small(["AbCd"])
    assert blocks.Encoder(small, separator=None).state() == state
    small.lower = False
    assert rows(to_blocks(texts, small, 4, style="crop")) == [[26, 1, 28, 3]]


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ["a b c", "d e"] * 300))

    def make(**options):
        texts = load_corpus(str(tmp_path / "text.jsonl"), normalize=str.lower)
        tokenizer = word_tokenizer()
        # This leaves its mark on the tokenizer
        tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
        return to_blocks(texts, tokenizer, **{"length": 8} | options)

    first = make()
    calls = []
    monkeypatch.setattr(blocks, "tokenize_documents", lambda *arguments, **_: calls.append("tokenize"))
    monkeypatch.setattr(blocks, "cut_rows", lambda *arguments, **_: calls.append("cut"))
    second = make()
    assert not calls
    assert second.cache_files == first.cache_files
    assert rows(second) == rows(first)

    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = [make(**options)._fingerprint for options in ({"length": 9}, {"style": "crop"}, {"drop_last": False})]
    assert len({first._fingerprint, *names}) == 4


FINGERPRINT = """
import sys
import datasets
from edlm_hf.data import load_corpus, to_blocks
from edlm_hf.tokenization import normalize_text8, text8_tokenizer
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
texts = load_corpus(sys.argv[1], normalize=normalize_text8)
print(to_blocks(texts, text8_tokenizer(), 16, style="crop", start_token=True)._fingerprint)
"""


def test_another_process_finds_the_cache_of_this_one(tmp_path):
    (tmp_path / "book.txt").write_text("A book of 2 lines,\nnot more than that.")
    texts = load_corpus(str(tmp_path / "book.txt"), normalize=normalize_text8)
    here = to_blocks(texts, text8_tokenizer(), 16, style="crop", start_token=True)
    command = [sys.executable, "-c", FINGERPRINT, str(tmp_path / "book.txt"), str(tmp_path / "cache")]
    there = subprocess.run(command, capture_output=True, text=True)
    assert there.returncode == 0, there.stderr
    assert there.stdout.split()[-1] == here._fingerprint


def test_a_stream_continues_after_skipping_and_from_its_state(monkeypatch):
    monkeypatch.setattr(blocks, "DOCUMENTS", 4)
    texts = random_corpus(40, TEXT8_ALPHABET)
    stream = to_blocks(
        corpus(*texts, streaming=True),
        text8_tokenizer(),
        16,
        style="crop",
        start_token=True,
    )
    everything = rows(stream)
    assert everything == rows(stream)
    assert everything == rows(to_blocks(corpus(*texts), text8_tokenizer(), 16, style="crop", start_token=True))
    assert rows(stream.skip(5)) == everything[5:]

    read = iter(stream)
    begun = [next(read)["input_ids"] for _ in range(7)]
    state = stream.state_dict()
    again = to_blocks(
        corpus(*texts, streaming=True),
        text8_tokenizer(),
        16,
        style="crop",
        start_token=True,
    )
    again.load_state_dict(state)
    assert begun + rows(again) == everything
