"""Local files of text: which files a name stands for, of which kind they are, and how `datasets` reads them."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from glob import escape, glob
from pathlib import Path

import pandas as pd
from datasets import Features, Value
from datasets.data_files import DataFilesDict, get_data_patterns

# Suffix -> builder of `datasets`
BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
}
SUFFIXES = ".parquet, .jsonl, .json, .txt, .csv, .tsv (each also as .gz, .bz2, .xz or .zst)"

# Suffix -> function that opens the file. `datasets` reads .zst itself, the standard library cannot.
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": None}
CHUNK = 2**20  # bytes that are read at a time
FIRST_BYTES = 4096  # which tell the encoding of a file

# Raised where the content of a file cannot be read
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)

UTF_8 = "utf-8-sig"  # with or without a byte order mark
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
UTF_32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def find_files(name: str, split: str) -> dict[str, list[Path]]:
    """Local files by split, an empty dictionary if there are none.

    A file, or the files that match a pattern, are the split asked for. In a folder, names of files or
    subfolders decide the splits, as in `datasets`.

    Raises:
        ValueError: an empty name, or a folder without files that can be read.
    """
    if not name:
        raise ValueError("The name of the corpus is empty. Give a protocol, files, or a dataset on the Hub.")
    path = Path(name).expanduser()
    if path.is_dir():
        return files_of_folder(path)

    # A name with brackets in it may be a file and not a pattern
    files = [path]
    if not path.is_file():
        files = sorted(map(Path, glob(str(path), recursive=True)))

    split_name = split.partition("[")[0]  # without a slice, as in train[:1%]
    return {split_name: files} if files else {}


def files_of_folder(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by split, as far as they are of a kind that can be read.

    Raises:
        ValueError: there are none.
    """
    # The rules of `datasets` for names such as train-00001.txt or test/a.txt
    base = escape(str(folder.absolute()))
    try:
        patterns = get_data_patterns(base)
        names_by_split = DataFilesDict.from_patterns(patterns, base_path=base)
    except FileNotFoundError:  # an empty folder
        names_by_split = {}

    # Other files, such as a README without a suffix, are left out
    files_by_split = {}
    for split, names in names_by_split.items():
        files = [path for path in map(Path, names) if kind_of(path, without_suffix=None)]
        if files:
            files_by_split[split] = files
    if not files_by_split:
        raise ValueError(f"The folder {folder} holds no files of a kind that can be read: {SUFFIXES}.")
    return files_by_split


def kind_of(path: Path, without_suffix: str | None = "text") -> str | None:
    """The builder of `datasets` that reads a file, by its suffix in letters of any case. None for other files.

    Args:
        without_suffix: the answer for a file without a suffix.
    """
    suffix = suffix_of(path)
    return BUILDERS.get(suffix) if suffix else without_suffix


def suffix_of(path: Path) -> str:
    """The suffix of a file in small letters, the one before .gz and the like. Empty where there is none.

    >>> suffix_of(Path("a/b.tsv.GZ"))
    '.tsv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def reading(name: str, files: dict[str, list[Path]]) -> dict:
    """The arguments of `datasets.load_dataset` that read these files.

    Raises:
        ValueError: the files are of several kinds or encodings, one is of no kind that is known, or
            none of them holds text.
    """
    everything = [file for of_split in files.values() for file in of_split]
    kind = common_kind(name, everything)

    # `datasets` takes names as patterns
    patterns = {}
    for split, of_split in files.items():
        patterns[split] = [escape(str(file.absolute())) for file in of_split]
    arguments = {"path": kind, "data_files": patterns}
    if kind == "parquet":
        return arguments

    # Formats of text. JSON is UTF-8, and a .txt file is one document
    encoding = common_encoding(name, everything, kind)
    if kind != "json":
        arguments["encoding"] = encoding
    if kind == "text":
        arguments["sample_by"] = "document"
    if kind == "csv":
        arguments |= columns_of_text(everything, encoding)
    return arguments


def columns_of_text(files: list[Path], encoding: str) -> dict:
    """The arguments that read every column of .csv and .tsv files as it is written, "NA" and "007" too.

    Raises:
        ValueError: the first row of a file has more fields than its header.
    """
    arguments = {
        "sep": "\t" if suffix_of(files[0]) == ".tsv" else ",",
        "keep_default_na": False,
    }
    names = None
    for file in files:
        try:
            start = pd.read_csv(file, nrows=1, encoding=encoding, dtype=str, **arguments)
        except (*DAMAGED, ValueError, ImportError):
            continue  # the fault is reported where the file is read

        # pandas takes surplus fields for names of the rows, and shifts the columns
        if len(start) and not isinstance(start.index, pd.RangeIndex):
            surplus = start.index.nlevels
            raise ValueError(
                f"{file}: the header has {len(start.columns)} fields, but the first row has "
                f"{len(start.columns) + surplus}. Put texts with {arguments['sep']!r} in them in quotes, or write "
                ".jsonl files."
            )

        # A file of a single column needs no separator, but a header has no reason for another one
        header = str(start.columns[0])
        if len(start.columns) == 1 and arguments["sep"] == "," and (";" in header or "\t" in header):
            raise ValueError(
                f"{file}: the fields of .csv files are separated by commas, and its header {header!r} has none. Write "
                "commas, or a .tsv file with tabs."
            )

        # The columns that all files have
        columns = list(start.columns)
        names = columns if names is None else [name for name in names if name in columns]

    if names:
        arguments["features"] = Features({name: Value("string") for name in names})
    return arguments


def common_kind(name: str, files: list[Path]) -> str:
    """The one kind of all files: the builder of `datasets` that reads them.

    Raises:
        ValueError: the files are of several kinds, or one is of no kind that is known.
    """
    kinds = {kind_of(file) for file in files}
    if None in kinds:
        unknown = next(file for file in files if kind_of(file) is None)
        raise ValueError(f"{unknown} is of no kind that can be read: {SUFFIXES}. Rename or convert it.")

    # .csv and .tsv have one builder, but other separators
    separators = {suffix_of(file) for file in files} if kinds == {"csv"} else set()
    if len(kinds) > 1 or len(separators) > 1:
        different = sorted(kinds) if len(kinds) > 1 else sorted(separators)
        raise ValueError(
            f"{name} holds {' and '.join(different)} files, but one kind is needed, of {SUFFIXES}. Give a pattern "
            "instead, such as folder/*.txt."
        )
    return kinds.pop()


def common_encoding(name: str, files: list[Path], kind: str) -> str:
    """The one encoding of all files that are not empty.

    Raises:
        ValueError: all files are empty, or they have several encodings, or UTF-16 where it cannot be read.
    """
    encodings = {encoding_of(file) for file in files if file.stat().st_size}
    if not encodings:
        raise ValueError(f"{name} holds no text: {files[0]} is empty. Give a file with text in it.")
    if len(encodings) > 1 or (kind == "json" and "utf-16" in encodings):
        raise ValueError(f"{name} is (in part) UTF-16. Convert it, for example with iconv -f utf-16 -t utf-8.")
    return encodings.pop()


def encoding_of(file: Path) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one, by the first bytes of a file.

    Raises:
        ValueError: the file begins with bytes that no text has.
    """
    try:
        start = next(chunks_of(file), b"")[:FIRST_BYTES]
    except DAMAGED:
        return UTF_8  # the fault is reported where the file is read

    # First, since the mark of UTF-16 is the first half of the one of UTF-32
    if start.startswith(UTF_32_MARKS):
        raise ValueError(f"{file} is UTF-32. Convert it, for example with iconv -f utf-32 -t utf-8.")
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding

    # In UTF-16 every second byte of plain English is zero, in UTF-8 none is
    if b"\0" in start:
        raise ValueError(
            f"{file} holds zero bytes: it is not text, or UTF-16 without a byte order mark. For the latter convert it, "
            "for example with iconv -f utf-16le -t utf-8."
        )
    return UTF_8


def chunks_of(file: Path) -> Iterator[bytes]:
    """The content of a file, decompressed where its suffix asks for it. Nothing for .zst."""
    unpack = COMPRESSED.get(file.suffix.lower(), open)
    if unpack is None:
        return
    with unpack(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


__all__ = ["SUFFIXES", "find_files", "kind_of", "reading"]
