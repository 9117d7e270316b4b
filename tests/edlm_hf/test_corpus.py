"""Corpora of local files and folders: their splits, their column of text, and what is refused."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import KINDS, rows

from edlm_hf.data import load_corpus, to_blocks
from edlm_hf.tokenization import normalize_text8, text8_tokenizer

pytestmark = pytest.mark.usefixtures("quiet_datasets")


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


def test_a_corpus_has_a_name_and_a_split():
    with pytest.raises(ValueError, match="split is None, but the name of one split"):
        load_corpus("text.txt", None)
    with pytest.raises(ValueError, match="name_or_path is None"):
        load_corpus(None)
