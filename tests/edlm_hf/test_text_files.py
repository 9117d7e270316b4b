"""Text files as people have them: encodings, endings, compression, names, and what is wrong with the others."""

import bz2
import codecs
import gzip
import lzma

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from edlm_hf.cli import app
from edlm_hf.data import files as text_files
from edlm_hf.data import load_corpus
from edlm_hf.data.file_faults import fault_of_text

TEXT = "day and night"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def texts_of(path, **options) -> list:
    return [row["text"] for row in load_corpus(str(path), **options)]


READABLE = {
    "bom.txt": b"\xef\xbb\xbf" + TEXT.encode(),
    "UPPER.TXT": TEXT.encode(),
    "text[1] (copy) *?.txt": TEXT.encode(),
    "caf\u00e9 und \u6771\u4eac.txt": TEXT.encode(),
    "without_suffix": TEXT.encode(),
    "little.txt": TEXT.encode("utf-16"),
    "big.txt": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "text.txt.gz": gzip.compress(TEXT.encode()),
    "text.txt.bz2": bz2.compress(TEXT.encode()),
    "text.txt.XZ": lzma.compress(TEXT.encode()),
    "rows.csv": b"\xef\xbb\xbfnumber,text\r\n1,day and night\r\n",
    "rows.tsv": b"number\ttext\n1\tday and night\n",
    "rows.csv.gz": gzip.compress(b"number,text\n1,day and night\n"),
    "rows.jsonl": b'\xef\xbb\xbf{"text": "day and night"}\n',
    "rows.ndjson.gz": gzip.compress(b'{"text": "day and night"}\n'),
    "list.json": b'[{"text": "day and night"}]',
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", READABLE)
def test_a_file_is_read_whatever_its_encoding_ending_and_name(tmp_path, name, streaming):
    (tmp_path / name).write_bytes(READABLE[name])
    assert texts_of(tmp_path / name, streaming=streaming) == [TEXT]


def test_line_ends_and_tabs_of_any_system_are_kept_as_line_ends_and_tabs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"day\r\nand\tnight")
    assert texts_of(tmp_path / "a.txt") == ["day\nand\tnight"]


def test_a_line_of_twenty_million_characters_is_one_document(tmp_path):
    (tmp_path / "long.txt").write_text("x" * 20_000_000)
    assert list(map(len, texts_of(tmp_path / "long.txt"))) == [20_000_000]


def test_a_folder_with_brackets_and_capitals_is_read_with_its_splits(tmp_path):
    folder = tmp_path / "books [2]"
    folder.mkdir()
    for name in ("train-1.TXT", "train-2.TXT", "test.TXT"):
        (folder / name).write_text(name)
    (folder / "notes.md").write_text("of another kind")
    assert texts_of(folder) == ["train-1.TXT", "train-2.TXT"]
    assert texts_of(folder, split="test") == ["test.TXT"]


def test_rows_without_text_are_empty_documents(tmp_path):
    (tmp_path / "rows.csv").write_text('number,text\n1,\n2,day\n3,""\n')
    assert texts_of(tmp_path / "rows.csv", text_column="text", normalize=str.upper) == ["", "DAY", ""]


UNREADABLE = {
    "empty.txt": (b"", "empty.txt is empty"),
    "empty.jsonl": (b"", "empty.jsonl is empty"),
    "empty.csv": (b"", "empty.csv is empty"),
    "latin.txt": ("caf\u00e9 au lait".encode("latin-1"), r"latin.txt is not UTF-8: byte 3 is 0xe9.*iconv"),
    "latin.csv": ("text\ncaf\u00e9 au lait\n".encode("latin-1"), r"latin.csv is not UTF-8: byte 8 is 0xe9.*iconv"),
    "late.txt": (b"a" * 3_000_000 + b"\xff.", "late.txt is not UTF-8: byte 3,000,000 is 0xff"),
    "split.txt": (b"a" * (2**20 - 1) + b"\xc3(", "split.txt is not UTF-8: byte 1,048,575 is 0xc3"),
    "cut.txt": ("caf\u00e9".encode()[:-1], "cut.txt ends within a character"),
    "zeros.txt": (TEXT.encode("utf-16-le"), "zeros.txt holds zero bytes.*utf-16le"),
    "wide.jsonl": ('{"text": "day"}'.encode("utf-16"), "UTF-16"),
    "cut.jsonl": (b'{"text": "day"}\n{"text": "ni', "cut.jsonl is not JSON in line 2"),
    "words.json": (b"day and night", "words.json is not JSON in line 1"),
    "cut.txt.gz": (gzip.compress(TEXT.encode() * 99)[:-12], "cut.txt.gz cannot be read"),
    "no.txt.gz": (b"day and night", "no.txt.gz"),
    "rows.parquet": (b"day and night", "rows.parquet is damaged, or not a parquet file"),
    "picture.png": (b"day", "picture.png is of no kind that can be read"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(tmp_path, name):
    content, words = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("name", ["latin.txt", "empty.txt", "zeros.txt", "cut.txt.gz"])
def test_a_file_that_is_streamed_is_looked_at_before(tmp_path, name):
    content, words = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words.partition(":")[0]):
        texts_of(tmp_path / name, streaming=True)


def test_a_cut_parquet_file_is_named(tmp_path):
    parquet.write_table(pa.table({"text": ["day"] * 1000}), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="rows.parquet is damaged"):
        texts_of(tmp_path / "rows.parquet")


def test_of_several_files_the_damaged_one_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("day")
    (tmp_path / "b.txt").write_bytes(b"nig\xe9ht")
    with pytest.raises(ValueError, match=r"b.txt is not UTF-8: byte 3"):
        texts_of(tmp_path / "*.txt")
    (tmp_path / "c.csv").write_text("text\nday\n")
    with pytest.raises(ValueError, match="csv and text files, but one kind is needed"):
        texts_of(tmp_path / "[a-c].*")


@pytest.mark.parametrize("name", ["latin.txt", "cut.jsonl", "empty.txt"])
def test_the_command_line_says_it_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(UNREADABLE[name][0])
    told = CliRunner().invoke(
        app,
        ["evaluate", "--model", "edlm-books", "--dataset", str(tmp_path / name)],
    )
    # The program switches them off where there is no terminal
    bars = "Loading weights", "Generating"
    lines = [line for line in told.stderr.splitlines() if line and not line.startswith(bars)]
    assert told.exit_code == 1 and len(lines) == 1 and name in lines[0]


def test_a_character_that_lies_across_two_chunks_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK", 4)
    (tmp_path / "a.txt").write_text("abc\u00e9def\u6771")
    assert fault_of_text(tmp_path / "a.txt") is None


def test_the_fields_of_csv_files_are_read_as_they_are_written(tmp_path):
    (tmp_path / "words.csv").write_text('text\nnull\nNA\n007\n"day, night"\n""\nlast\n')
    assert texts_of(tmp_path / "words.csv") == ["null", "NA", "007", "day, night", "", "last"]

    # The suffix is the last part of the name
    (tmp_path / "rows.tsv_export.csv").write_text("text,number\nday,1\n")
    assert texts_of(tmp_path / "rows.tsv_export.csv") == ["day"]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("content", "fields"),
    [("text\nhello, world\nbye, now\n", "1 fields.*has 2"), ("title,text\na,b,c,d\n", "2 fields.*has 4")],
)
def test_surplus_fields_of_csv_files_are_not_dropped(tmp_path, content, fields, streaming):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(ValueError, match=f"rows.csv: the header has {fields}.*in quotes"):
        texts_of(tmp_path / "rows.csv", streaming=streaming)


@pytest.mark.parametrize("header", ["id;text", "id\\ttext"])
def test_a_csv_file_with_another_separator_is_refused(tmp_path, header):
    (tmp_path / "rows.csv").write_text(header.replace("\\t", "\t") + "\n1;day\n")
    with pytest.raises(ValueError, match="rows.csv: the fields of .csv files are separated by commas"):
        texts_of(tmp_path / "rows.csv")


def test_the_column_that_is_taken_for_the_text_is_told(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"id": "abc", "number": 5}\n')
    (tmp_path / "texts.jsonl").write_text('{"id": "abc", "text": "day"}\n')
    assert texts_of(tmp_path / "rows.jsonl") == ["abc"]
    assert "rows.jsonl: the text is the column 'id'" in capsys.readouterr().err
    assert texts_of(tmp_path / "texts.jsonl") == ["day"] and texts_of(tmp_path / "rows.jsonl", text_column="id")
    assert "the text is" not in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-be"])
def test_utf_32_is_refused_by_its_name(tmp_path, encoding):
    mark = codecs.BOM_UTF32_BE if encoding == "utf-32-be" else b""
    (tmp_path / "a.txt").write_bytes(mark + "day".encode(encoding))
    with pytest.raises(ValueError, match="a.txt is UTF-32. Convert it"):
        texts_of(tmp_path / "a.txt")


@pytest.mark.parametrize("split", ["train", datasets.Split.TRAIN, datasets.ReadInstruction("train")], ids=str)
def test_a_split_may_be_an_object_of_datasets(tmp_path, split):
    (tmp_path / "a.txt").write_text("day")
    assert texts_of(tmp_path / "a.txt", split=split) == ["day"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_files_of_a_folder_may_have_more_columns_than_the_text(tmp_path, order):
    first, second = order
    (tmp_path / f"{first}.csv").write_text("id,text\n1,day\n")
    (tmp_path / f"{second}.csv").write_text("text\nnight\n")
    assert sorted(texts_of(tmp_path)) == ["day", "night"]


def test_a_folder_has_one_separator(tmp_path):
    (tmp_path / "a.csv").write_text("text\nday\n")
    (tmp_path / "b.tsv").write_text("text\nnight\n")
    with pytest.raises(ValueError, match=r"holds .csv and .tsv files, but one kind is needed"):
        texts_of(tmp_path)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 5}', "column 'text' holds int.*strings. Write the texts"),
        ('{"text": ["a"]}', "column 'text' holds [Ll]ist"),
        ('{"text": 5, "title": "a"}', "column 'text' holds int.*Give text_column, one of title"),
        ('{"number": 5}', "cannot tell which column is the text among number .int.*Write the texts"),
    ],
)
def test_numbers_and_lists_are_no_texts(tmp_path, line, message, streaming):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        texts_of(tmp_path / "rows.jsonl", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
def test_a_first_row_without_a_text_is_an_empty_document(tmp_path, streaming):
    (tmp_path / "rows.jsonl").write_text('{"text": null}\n{"text": "day"}\n')
    assert texts_of(tmp_path / "rows.jsonl", streaming=streaming) == [None, "day"]


def test_files_without_rows_and_corpora_without_a_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text\n")
    with pytest.raises(ValueError, match="rows.csv has no rows in split 'train'"):
        texts_of(tmp_path / "rows.csv")

    # Not the files of the folder that one stands in
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name of the corpus is empty"):
        texts_of("")
