import dataclasses
import json
import random
import string
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from edlm_hf.data import PROTOCOLS, blocks, document_windows, load_corpus, to_blocks
from edlm_hf.data.detokenizers import ptb
from edlm_hf.tokenization import TEXT8_ALPHABET, normalize_text8, text8_tokenizer

WORDS = ["<s>", "</s>", "[PAD]", "a", "b", "c", "d", "e"]
S, E, P, A, B, C, D, F = range(len(WORDS))  # F is the word e


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is read from or left in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


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


# ------------------------------------------------------------------------------------------------------------- blocks


@KINDS
def test_wrapped_rows_start_and_end_and_run_on_over_documents(streaming):
    wrapped = to_blocks(corpus("a b c", "", "d e a", streaming=streaming), word_tokenizer(), 5)
    assert rows(wrapped) == [[S, A, B, C, E], [S, E, E, D, E], [S, F, A, E, E]]
    assert wrapped.column_names == ["input_ids"]


@KINDS
def test_the_last_row_is_dropped_or_padded(streaming):
    texts = corpus("a b c", "d", streaming=streaming)
    assert rows(to_blocks(texts, word_tokenizer(), 6)) == [[S, A, B, C, E, E]]
    kept = to_blocks(texts, word_tokenizer(), 6, drop_last=False)
    assert rows(kept) == [[S, A, B, C, E, E], [S, D, E, E, P, P]]
    assert rows(kept, "attention_mask") == [[1] * 6, [1, 1, 1, 1, 0, 0]]


def test_without_a_padding_token_the_padding_is_zero_and_masked():
    kept = to_blocks(
        corpus("abc"),
        text8_tokenizer(start_token=False),
        2,
        style="crop",
        drop_last=False,
    )
    assert rows(kept) == [[1, 2], [3, 0]]
    assert rows(kept, "attention_mask") == [[1, 1], [1, 0]]


@KINDS
def test_cropped_rows_are_the_stream_with_or_without_a_start_token(streaming):
    texts = corpus(" ab", " cd e", streaming=streaming)
    assert rows(to_blocks(texts, text8_tokenizer(), 4, style="crop")) == [[0, 1, 2, 0], [3, 4, 0, 5]]
    started = to_blocks(texts, text8_tokenizer(), 4, style="crop", start_token=True)
    assert rows(started) == [[27, 0, 1, 2], [27, 0, 3, 4]]


@KINDS
@pytest.mark.parametrize("documents", [1, 3, 128])
@pytest.mark.parametrize("style", ["wrap", "crop"])
def test_every_token_is_in_one_row_in_order_however_the_work_is_batched(
    style,
    documents,
    streaming,
    monkeypatch,
):
    monkeypatch.setattr(blocks, "DOCUMENTS", documents)
    texts = [" ".join(text) for text in random_corpus(50, "abcde")]
    length = 9
    expected = []
    for text in texts:
        expected += [WORDS.index(word) for word in text.split()] + [E] * (style == "wrap")
    body = slice(1, -1) if style == "wrap" else slice(None)
    cut = to_blocks(corpus(*texts, streaming=streaming), word_tokenizer(), length, style=style)
    found = [token for row in rows(cut) for token in row[body]]
    assert len(expected) - len(found) < length
    assert found == expected[: len(found)]

    kept = to_blocks(
        corpus(*texts, streaming=streaming),
        word_tokenizer(),
        length,
        style=style,
        drop_last=False,
    )
    assert rows(kept)[:-1] == rows(cut)
    texts_only = [row["input_ids"][: sum(row["attention_mask"])][body] for row in kept]
    assert [token for row in texts_only for token in row] == expected


def test_more_documents_than_fit_one_batch_give_the_rows_of_one_pass():
    texts = random_corpus(1500, TEXT8_ALPHABET)
    ids = text8_tokenizer()("".join(texts), add_special_tokens=False).input_ids
    for length in (1, 7, 256):
        cut = to_blocks(corpus(*texts), text8_tokenizer(), length, style="crop")
        assert rows(cut) == [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def test_rows_are_small_integers_and_int64_as_tensors():
    cut = to_blocks(corpus("abcd"), text8_tokenizer(), 2, style="crop")
    assert cut.features == {"input_ids": datasets.Sequence(datasets.Value("uint8"))}
    assert torch.equal(cut.with_format("torch")[:]["input_ids"], torch.tensor([[1, 2], [3, 4]]))


def test_text_that_spells_a_special_token_stays_text():
    for tokenizer in (text8_tokenizer(), word_tokenizer()):
        cut = to_blocks(corpus("a [MASK] b <s> </s> [PAD]"), tokenizer, 4, style="crop")
        special = set(tokenizer.all_special_ids)
        assert not special & {token for row in rows(cut) for token in row}


@pytest.mark.parametrize("start_token", [True, False])
def test_the_fast_path_of_the_text8_alphabet_gives_the_ids_of_the_tokenizer(start_token, tmp_path):
    text8_tokenizer(start_token=start_token).save_pretrained(tmp_path)
    texts = [
        "",
        "The caf\u00e9 (No. 5)\n",
        "\u0130\u212a\u4e2d\U0001f600e\u0301",
        "x\x00\x7f{[`@",
        *random_corpus(9, "aZ 9\u00df"),
    ]

    for tokenizer in (
        text8_tokenizer(start_token=start_token),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        encoder = blocks.Encoder(tokenizer, separator=None)
        assert encoder.table is not None
        fast = encoder(texts).tolist()
        encoder.table = None
        assert fast == encoder(texts).tolist()

    assert blocks.Encoder(word_tokenizer(), separator=E).table is None


def test_the_fast_path_is_not_taken_where_words_were_added():
    tokenizer = text8_tokenizer()
    tokenizer.add_tokens(["the"])
    encoder = blocks.Encoder(tokenizer, separator=None)
    expected = tokenizer(["the day"], add_special_tokens=False)["input_ids"][0]
    assert encoder.table is None and encoder(["the day"]).tolist() == expected


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


def test_cls_and_sep_stand_in_for_start_and_end():
    tokenizer = word_tokenizer(bos_token=None, eos_token=None, cls_token="<s>", sep_token="</s>")
    assert rows(to_blocks(corpus("a b"), tokenizer, 5)) == [[S, A, B, E, E]]


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


def test_what_cannot_be_cut_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="style='chop' is unknown; use 'wrap' or 'crop'"):
        to_blocks(corpus("a"), word_tokenizer(), 8, style="chop")
    with pytest.raises(ValueError, match="no column 'text' but words"):
        to_blocks(datasets.Dataset.from_dict({"words": ["a"]}), word_tokenizer(), 8)
    with pytest.raises(ValueError, match="length=2 has no room for text beside 2 special tokens"):
        to_blocks(corpus("a"), word_tokenizer(), 2)
    with pytest.raises(ValueError, match="neither eos_token nor sep_token.*style='crop'"):
        to_blocks(corpus("a"), text8_tokenizer(), 8)
    with pytest.raises(ValueError, match="neither bos_token nor cls_token"):
        to_blocks(corpus("a"), text8_tokenizer(start_token=False), 8, style="crop", start_token=True)


@KINDS
@pytest.mark.parametrize(("texts", "count"), [((), 0), (("", ""), 0), (("abc",), 3)])
def test_a_corpus_too_short_for_a_row_is_refused(texts, count, streaming):
    with pytest.raises(ValueError, match=f"has {count} tokens, and a row of length=8 takes 8"):
        rows(to_blocks(corpus(*texts, streaming=streaming), text8_tokenizer(), 8, style="crop"))


# ------------------------------------------------------------------------------------------------------------ windows


def test_windows_of_a_long_document():
    windows, scored = document_windows(torch.arange(10), length=6, stride=3)
    assert windows.tolist() == [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9]]
    assert [w[s].tolist() for w, s in zip(windows, scored, strict=True)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize("n", [1, 5, 6, 7, 12, 40])
@pytest.mark.parametrize("stride", [None, 1, 4, 6])
def test_every_token_of_a_document_is_scored_once(n, stride):
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    windows, scored = document_windows(ids, length=6, stride=stride)
    assert windows.shape == scored.shape == (len(windows), min(n, 6))
    assert torch.equal(windows[scored], ids)


def test_windows_that_lose_tokens_are_refused():
    for length, stride in ((6, 7), (6, 0), (0, None)):
        with pytest.raises(ValueError, match="1 <= stride <= length"):
            document_windows(torch.arange(10), length, stride)
    for ids in (torch.arange(0), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="one document"):
            document_windows(ids, 4)


# ------------------------------------------------------------------------------------------------------- local corpora


@pytest.fixture
def library(tmp_path):
    """A folder of books per split in parquet, the same texts as .txt and .jsonl beside it."""
    texts = {"train": ["first\nbook", "second"], "test": ["third"]}
    for folder in ("parquet", "txt", "jsonl"):
        (tmp_path / folder).mkdir()

    for split, books in texts.items():
        table = {"author": ["x"] * len(books), "year": [1900] * len(books), "text": books}
        pq.write_table(pa.table(table), tmp_path / f"parquet/{split}.parquet")
        lines = (json.dumps({"story": book, "year": 1900}) for book in books)
        (tmp_path / f"jsonl/{split}.jsonl").write_text("\n".join(lines))
        for number, book in enumerate(books):
            (tmp_path / f"txt/{split}-{number}.txt").write_text(book)

    return tmp_path


@KINDS
@pytest.mark.parametrize(
    "name", ["parquet", "txt", "jsonl", "parquet/train.parquet", "txt/train*.txt", "jsonl/*n.jsonl"]
)
def test_local_files_patterns_and_folders(library, name, streaming):
    loaded = load_corpus(str(library / name), streaming=streaming)
    assert list(loaded) == [{"text": "first\nbook"}, {"text": "second"}]
    assert isinstance(loaded, datasets.IterableDataset if streaming else datasets.Dataset)


@KINDS
def test_splits_of_local_corpora(library, streaming):
    assert rows(load_corpus(str(library / "txt"), "test", streaming=streaming), "text") == ["third"]
    file = str(library / "parquet/test.parquet")  # a file is the split asked for
    for split in ("train", "validation", "test"):
        assert rows(load_corpus(file, split, streaming=streaming), "text") == ["third"]
    if not streaming:
        assert rows(load_corpus(str(library / "parquet"), "train[1:]"), "text") == ["second"]


@KINDS
def test_the_text_column_is_text_or_the_only_strings_or_the_one_given(library, streaming):
    assert rows(load_corpus(str(library / "parquet"), text_column="author", streaming=streaming), "text") == ["x", "x"]
    pq.write_table(pa.table({"one": ["a"], "two": ["b"], "year": [1900]}), library / "two.parquet")
    with pytest.raises(
        ValueError, match=r"cannot tell which column is the text among .*year \(int64\).*one of one, two"
    ):
        load_corpus(str(library / "two.parquet"), streaming=streaming)
    with pytest.raises(ValueError, match="no column 'three'.*one of one, two"):
        load_corpus(str(library / "two.parquet"), text_column="three", streaming=streaming)


@KINDS
def test_documents_are_normalised_and_missing_ones_are_empty(tmp_path, streaming):
    pq.write_table(pa.table({"text": ["No 5", None]}), tmp_path / "text.parquet")
    loaded = load_corpus(str(tmp_path / "text.parquet"), normalize=normalize_text8, streaming=streaming)
    assert rows(loaded, "text") == [" no five", ""]


def test_from_files_to_blocks(library):
    for streaming in (False, True):
        texts = load_corpus(str(library / "parquet"), normalize=normalize_text8, streaming=streaming)
        cut = to_blocks(texts, text8_tokenizer(), 10, style="crop", start_token=True)
        assert text8_tokenizer().batch_decode(rows(cut)) == ["<s> first bo", "<s>ok second"]


def test_unknown_corpora_are_refused_with_a_reason(library):
    for name in ("text9", str(library / "none"), str(library / "none.parquet"), "books/none.parquet", "a/b/c"):
        with pytest.raises(ValueError, match="no protocol .text8, openwebtext.*owner/name:config"):
            load_corpus(name)
    with pytest.raises(ValueError, match="holds json and parquet and text files"):
        load_corpus(str(library))

    (library / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        load_corpus(str(library / "empty"))

    (library / "book.md").write_text("#")
    with pytest.raises(ValueError, match="book.md is of no kind that can be read: .parquet"):
        load_corpus(str(library / "book.md"))


# ---------------------------------------------------------------------------------------------------------- protocols


@pytest.fixture
def hub(monkeypatch):
    """In place of the Hub: `load_dataset` notes its arguments and gives ten numbered rows."""
    calls = []

    def load_dataset(**arguments):
        calls.append({name: value for name, value in arguments.items() if value is not None})
        texts = [f"row {number} 's" for number in range(10)]
        dataset = datasets.Dataset.from_dict(
            {
                "text": texts,
                "sentence": texts,
                "article": texts,
                "label": [0] * 10,
            }
        )
        return dataset.to_iterable_dataset() if arguments["streaming"] else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


SOURCES = {
    "text8": {"path": "afmck/text8", "split": "test"},
    "openwebtext": {"path": "Skylion007/openwebtext", "split": "train[-100000:]"},
    "ptb": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/validation/*.parquet"
        },
        "split": "validation",
    },
    "wikitext2": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "validation"},
    "wikitext103": {"path": "Salesforce/wikitext", "name": "wikitext-103-raw-v1", "split": "validation"},
    "lm1b": {
        "path": "parquet",
        "data_files": {
            "test": "hf://datasets/billion-word-benchmark/lm1b@refs/convert/parquet/plain_text/test/*.parquet"
        },
        "split": "test",
    },
    "lambada": {
        "path": "json",
        "data_files": {
            "test": "hf://datasets/EleutherAI/lambada_openai@879e19a2c9bb7ef03f9cf962089cf7d008f91e27"
            "/data/lambada_test.jsonl"
        },
        "split": "test",
    },
    "ag_news": {"path": "fancyzhx/ag_news", "split": "test"},
    "pubmed": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/armanc/scientific_papers@refs/convert/parquet/pubmed/validation/*.parquet"
        },
        "split": "validation",
    },
    "arxiv": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/armanc/scientific_papers@refs/convert/parquet/arxiv/validation/*.parquet"
        },
        "split": "validation",
    },
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_evaluation_split_of_a_protocol_is_loaded_from_the_hub_and_cleaned(name, hub):
    protocol = PROTOCOLS[name]
    loaded = load_corpus(name, protocol.evaluation)
    assert hub == [SOURCES[name] | {"streaming": False}]
    clean = protocol.clean or (lambda text: text)
    assert loaded.column_names == ["text"]
    assert rows(loaded, "text") == [clean(f"row {number} 's") for number in range(10)]


def test_the_protocols_of_the_paper():
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert all(protocol.evaluation in protocol.splits for protocol in PROTOCOLS.values())
    text8 = PROTOCOLS["text8"]
    assert (text8.style, text8.length, text8.unit) == ("crop", 256, "bits per character")
    others = {(p.style, p.length, p.unit) for p in PROTOCOLS.values() if p is not text8}
    assert others == {("wrap", 1024, "perplexity")}


def test_held_out_rows_are_the_last_ones(hub, monkeypatch):
    load_corpus("openwebtext", "train")
    assert hub == [{"path": "Skylion007/openwebtext", "split": "train[:-100000]", "streaming": False}]
    small = dataclasses.replace(PROTOCOLS["openwebtext"], rows=10, held_out=3)
    monkeypatch.setitem(PROTOCOLS, "openwebtext", small)
    splits = [rows(load_corpus("openwebtext", split, streaming=True), "text") for split in ("train", "validation")]
    assert splits == [[f"row {number} 's" for number in part] for part in (range(7), range(7, 10))]
    assert hub[-1] == {"path": "Skylion007/openwebtext", "split": "train", "streaming": True}


def test_a_streamed_protocol_is_cleaned_as_well(hub):
    streamed = load_corpus("ptb", "test", streaming=True, normalize=str.upper)
    assert rows(streamed, "text")[3] == ptb("row 3 's").upper()


def test_splits_that_a_protocol_does_not_have_are_refused():
    for name, split, available in (("lambada", "train", "test"), ("lm1b", "validation", "train, test")):
        with pytest.raises(ValueError, match=f"{name}.*no split '{split}'; it has {available}"):
            load_corpus(name, split)


def test_hub_datasets_by_id_with_or_without_a_configuration(hub):
    load_corpus("someone/stories", "test")
    load_corpus("someone/stories:long", "train[:1%]", text_column="article")
    assert hub == [
        {"path": "someone/stories", "split": "test", "streaming": False},
        {"path": "someone/stories", "name": "long", "split": "train[:1%]", "streaming": False},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["a", "b"]}, "dataset is a list, but a corpus of load_corpus.*from_dict"),
        ({"dataset": {"train": corpus("a")}}, "dataset is a dict"),
        ({"tokenizer": None}, "tokenizer is a NoneType, but a tokenizer of transformers"),
        ({"length": None}, "length is None, but it must be a positive integer"),
        ({"length": 2.5}, "length is 2.5"),
        ({"length": True}, "length is True"),
    ],
)
def test_blocks_are_made_of_a_corpus_a_tokenizer_and_a_whole_number(changes, message):
    arguments = {"dataset": corpus("a b"), "tokenizer": text8_tokenizer(), "length": 2} | changes
    with pytest.raises(ValueError, match=message):
        to_blocks(**arguments, style="crop")


def test_a_corpus_has_a_name_and_a_split():
    with pytest.raises(ValueError, match="split is None, but the name of one split"):
        load_corpus("text.txt", None)
    with pytest.raises(ValueError, match="name_or_path is None"):
        load_corpus(None)
