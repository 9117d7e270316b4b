"""A zip archive that nobody vouches for, whose records are read in place from the mapped file.

A record that is compressed, or shares its bytes with another, is refused: no small file becomes a
large one.
"""

import io
import mmap
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edlm_hf.terminal import printable

LARGEST_DIRECTORY = 2**23  # bytes, for many thousands of records

# The header before each record: signature, compression method, and the lengths of the name and of
# the filling that stand between the header and the content
LOCAL_HEADER = struct.Struct("<4s4xH16xHH")
SIGNATURE = b"PK\x03\x04"
UTF_8_NAME = 0x800  # flags of a record
ENCRYPTED = 1


class ShortReads(io.FileIO):
    """A file that gives at most `LARGEST_DIRECTORY` bytes at once.

    `zipfile` reads as much as the archive claims that its directory takes.
    """

    def read(self, size: int = -1) -> bytes:
        # A negative size means the rest of the file
        rest = os.fstat(self.fileno()).st_size - self.tell()
        wanted = rest if size < 0 else size
        if wanted > LARGEST_DIRECTORY:
            problem = f"its directory takes {wanted} bytes"
            raise ValueError(f"{problem}, but at most {LARGEST_DIRECTORY} are read")
        return super().read(size)


@dataclass(frozen=True)
class Record:
    """A file of the archive: its bytes, in the memory-mapped archive, and their checksum."""

    content: memoryview
    checksum: int


def read_records(path: Path) -> dict[str, Record]:
    """Return the records of an archive by name.

    Raises:
        Exception: the archive is damaged, or a record is not plain. It is compressed, has the name
            of another, does not stand where its own header is, or shares bytes with another.
    """
    # The pages are private: nothing that happens to a tensor reaches the file
    with ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        in_order = sorted(archive.infolist(), key=lambda info: info.header_offset)

    # In the order of the file, where every record begins after the end of the one before
    records = {}
    end = 0
    for info in in_order:
        if info.filename in records:
            raise ValueError(f"it has two records {printable(info.filename)}")
        start, end = content_range(info, memory, end)
        records[info.filename] = Record(memory[start:end], info.CRC)
    return records


def content_range(info: zipfile.ZipInfo, memory: memoryview, end: int) -> tuple[int, int]:
    """Find where the content of a record begins and ends. The record before it ends at `end`."""
    name = printable(info.filename)
    is_stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if not is_stored or info.flag_bits & ENCRYPTED:
        raise ValueError(f"its record {name} is not plain: it is compressed or encrypted")
    if info.header_offset < end:
        raise ValueError(f"its record {name} begins inside another")

    # The record has a header of its own, which is followed by its name, a filling and its content
    header = LOCAL_HEADER.unpack_from(memory, info.header_offset)
    signature, method, name_size, filling_size = header
    name_start = info.header_offset + LOCAL_HEADER.size
    stored_name = bytes(memory[name_start : name_start + name_size])
    start = name_start + name_size + filling_size

    # It agrees with the directory
    encoding = "utf-8" if info.flag_bits & UTF_8_NAME else "cp437"
    same_kind = signature == SIGNATURE and method == info.compress_type
    same_name = stored_name == info.orig_filename.encode(encoding)
    if not (same_kind and same_name) or start + info.file_size > len(memory):
        raise ValueError(f"its record {name} is not where the directory says")
    return start, start + info.file_size


__all__ = ["Record", "read_records"]
