"""Local files of text as people have them: which they are, how each is read, and what is wrong with one that is not."""

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from glob import escape, glob
from pathlib import Path

import pyarrow as pa
from datasets.data_files import DataFilesDict, get_data_patterns

BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".txt": "text",
    "": "text",
    ".csv": "csv",
    ".tsv": "csv",
}
SUFFIXES = ".parquet, .jsonl, .json, .txt, .csv, .tsv (each also as .gz, .bz2, .xz or .zst)"
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": None}
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
CHUNK = 2**20
CONVERSION = "Convert it, for example with iconv -f latin1 -t utf-8"


def find_files(name: str, split: str) -> dict[str, list[Path]]:
    """Local files by split: a file, or those that a pattern matches, are the split asked for; nothing if none is there.

    In a folder the splits are told by the names of files or subfolders, as `datasets` does.

    Raises:
        ValueError: a folder without files that can be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return files_of_folder(path)
    found = [path] if path.is_file() else sorted(map(Path, glob(str(path), recursive=True)))
    return {split.partition("[")[0]: found} if found else {}


def files_of_folder(folder: Path) -> dict[str, list[Path]]:
    base = escape(str(folder.absolute()))
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    except FileNotFoundError:  # an empty folder
        found = {}
    by_split = {split: [Path(file) for file in files if kind_of(Path(file), "")] for split, files in found.items()}
    by_split = {split: files for split, files in by_split.items() if files}
    if not by_split:
        raise ValueError(f"The folder {folder} holds no files of a kind that can be read: {SUFFIXES}.")
    return by_split


def kind_of(path: Path, without_suffix: str = "text") -> str | None:
    """The builder of `datasets` that reads a file, by its suffix in letters of any case; None for other files."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kind = BUILDERS.get(suffixes[-1] if suffixes else "")
    return kind if suffixes else without_suffix or None


def reading(name: str, files: dict[str, list[Path]]) -> dict:
    """The arguments of `datasets.load_dataset` that read these files.

    Raises:
        ValueError: they are of several kinds or encodings, of none that is known, or one of them holds no text.
    """
    everything = [file for part in files.values() for file in part]
    kinds = {kind_of(file) for file in everything}
    if None in kinds:
        unknown = next(file for file in everything if kind_of(file) is None)
        raise ValueError(f"{unknown} is of no kind that can be read: {SUFFIXES}. Rename or convert it.")
    if len(kinds) > 1:
        raise ValueError(
            f"{name} holds {' and '.join(sorted(kinds))} files, but one kind is needed, of {SUFFIXES}. Give a pattern "
            "instead, such as folder/*.txt."
        )
    kind = kinds.pop()

    # Names are patterns to `datasets`
    patterns = {split: [escape(str(file.absolute())) for file in part] for split, part in files.items()}
    arguments = {"path": kind, "data_files": patterns}
    if kind == "parquet":
        return arguments
    encodings = {encoding_of(file) for file in everything if file.stat().st_size}
    if not encodings:
        raise ValueError(f"{name} holds no text: {everything[0]} is empty. Give a file with text in it.")
    if len(encodings) > 1 or (kind == "json" and "utf-16" in encodings):
        raise ValueError(f"{name} is (in part) UTF-16. Convert it, for example with iconv -f utf-16 -t utf-8.")
    if kind != "json":
        arguments["encoding"] = encodings.pop()
    if kind == "text":
        arguments["sample_by"] = "document"
    if any(".tsv" in file.name.lower() for file in everything):
        arguments["sep"] = "\t"
    return arguments


def encoding_of(file: Path) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        ValueError: the file begins with bytes that no text has.
    """
    try:
        start = next(chunks_of(file), b"")[:4096]
    except DAMAGED:
        return "utf-8-sig"  # what is wrong is told where the file is read
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" in start:
        raise ValueError(
            f"{file} holds zero bytes: it is not text, or UTF-16 without a byte order mark. For the latter convert it, "
            "for example with iconv -f utf-16le -t utf-8."
        )
    return "utf-8-sig"


# ------------------------------------------------------------------------------------------------------- what is wrong

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def chunks_of(file: Path) -> Iterator[bytes]:
    """The content of a file, decompressed where its suffix says so."""
    unpack = COMPRESSED.get(file.suffix.lower(), open)
    if unpack is None:
        return
    with unpack(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def fault_of_text(file: Path, most_bytes: int | None = None) -> str | None:
    """What is wrong with a file of text, or with its first `most_bytes`; None if nothing is found."""
    try:
        if file.stat().st_size == 0:
            return "is empty"
        if kind_of(file) == "parquet":
            return fault_of_parquet(file)
        return fault_of_encoding(file, most_bytes) or (fault_of_lines(file) if most_bytes is None else None)
    except DAMAGED as error:
        return f"cannot be read: {error}"


def fault_of_parquet(file: Path) -> str | None:
    from pyarrow import parquet

    try:
        parquet.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        return f"is damaged, or not a parquet file: {error}"
    return None


def fault_of_encoding(file: Path, most_bytes: int | None) -> str | None:
    if encoding_of(file) != "utf-8-sig":
        return None
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in chunks_of(file):
        pending = len(decoder.getstate()[0])  # bytes of a character that began in the chunk before
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            place = done - pending + error.start
            return f"is not UTF-8: byte {place:,} is 0x{error.object[error.start]:02x}. {CONVERSION}"
        done += len(chunk)
        if most_bytes is not None and done >= most_bytes:
            return None
    if decoder.getstate()[0]:
        return f"ends within a character of UTF-8: it was cut, or has another encoding. {CONVERSION}"
    return None


def fault_of_lines(file: Path) -> str | None:
    """The first line of a JSON Lines file that is not JSON, or what is wrong with a JSON file."""
    if kind_of(file) != "json":
        return None
    text = b"".join(chunks_of(file)).decode("utf-8-sig")
    try:
        json.loads(text)
        return None
    except (ValueError, RecursionError) as error:
        of_whole = error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.strip():
                json.loads(line)
        except (ValueError, RecursionError) as error:
            return f"is not JSON in line {number}: {error if number > 1 else of_whole}"
    return None


__all__ = ["SUFFIXES", "fault_of_text", "find_files", "reading"]
