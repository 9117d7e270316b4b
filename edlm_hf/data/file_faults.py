"""Faults of local files of text, in words that end a sentence: "FILE is empty"."""

import codecs
import json
from pathlib import Path

import pyarrow as pa

from edlm_hf.data.files import DAMAGED, UTF_8, chunks_of, encoding_of, kind_of

CONVERSION = "Convert it, for example with iconv -f latin1 -t utf-8"


def fault_of_text(file: Path, most_bytes: int | None = None) -> str | None:
    """The fault of a file of text, or of its first `most_bytes`. None if no fault was found."""
    try:
        if file.stat().st_size == 0:
            return "is empty"
        if kind_of(file) == "parquet":
            return fault_of_parquet(file)

        # A part of a JSON file is not JSON, so that only a whole file is checked for it
        fault = fault_of_encoding(file, most_bytes)
        if fault is None and most_bytes is None:
            fault = fault_of_json(file)
        return fault
    except DAMAGED as error:
        return f"cannot be read: {error}"


def fault_of_parquet(file: Path) -> str | None:
    """The fault of a parquet file, by its footer. Its columns are not read."""
    from pyarrow import parquet

    try:
        parquet.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        return f"is damaged, or not a parquet file: {error}"
    return None


def fault_of_encoding(file: Path, most_bytes: int | None) -> str | None:
    """The first byte that is not UTF-8, in a file that should be."""
    if encoding_of(file) != UTF_8:
        return None

    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0  # bytes of earlier chunks
    for chunk in chunks_of(file):
        pending = len(decoder.getstate()[0])  # bytes of a character that began in an earlier chunk
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            position = done - pending + error.start
            return f"is not UTF-8: byte {position:,} is 0x{error.object[error.start]:02x}. {CONVERSION}"

        done += len(chunk)
        if most_bytes is not None and done >= most_bytes:
            return None

    # Bytes of a character that has no end
    if decoder.getstate()[0]:
        return f"ends within a character of UTF-8: it was cut, or has another encoding. {CONVERSION}"
    return None


def fault_of_json(file: Path) -> str | None:
    """The fault of a JSON file, or the first line of a JSON Lines file that is not JSON."""
    if kind_of(file) != "json":
        return None

    # One JSON value
    text = b"".join(chunks_of(file)).decode(UTF_8)
    try:
        json.loads(text)
        return None
    except (ValueError, RecursionError) as error:
        error_of_whole = error

    # Or one in every line. In a file that is one value the error of the whole says more.
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.strip():
                json.loads(line)
        except (ValueError, RecursionError) as error:
            return f"is not JSON in line {number}: {error if number > 1 else error_of_whole}"
    return None


__all__ = ["fault_of_text"]
