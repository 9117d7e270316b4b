"""A zip archive that nobody vouches for, whose records are read where they lie in the file.

A record that is compressed, or shares its bytes with another, is refused: no small file becomes a large one.
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
LOCAL_HEADER = struct.Struct("<4s4xH16xHH")  # signature, compression, lengths of the name and of what follows it
SIGNATURE = b"PK\x03\x04"


class ShortReads(io.FileIO):
    """A file that is read in small pieces only: `zipfile` asks for as much as the archive claims to need."""

    def read(self, size: int = -1) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        wanted = rest if size < 0 else size
        if wanted > LARGEST_DIRECTORY:
            raise ValueError(f"its directory takes {wanted} bytes, but at most {LARGEST_DIRECTORY} are read")
        return super().read(size)


@dataclass(frozen=True)
class Record:
    """A file of the archive: its bytes, where they lie, and their checksum."""

    content: memoryview
    checksum: int


def read_records(path: Path) -> dict[str, Record]:
    """The records of an archive by name, in the memory-mapped file.

    Raises:
        Exception: the archive is damaged, or a record is not plain: compressed, twice there, or not where its own
            header is, with all its bytes to itself.
    """
    with ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)

    records, end = {}, 0
    for info in infos:
        if info.filename in records:
            raise ValueError(f"it has two records {printable(info.filename)}")
        start, end = place_of(info, memory, end)
        records[info.filename] = Record(memory[start:end], info.CRC)
    return records


def place_of(info: zipfile.ZipInfo, memory: memoryview, end: int) -> tuple[int, int]:
    """Where the content of a record begins and ends; the record before it ends at `end`."""
    name = printable(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError(f"its record {name} is not plain: it is compressed or encrypted")
    if info.header_offset < end:
        raise ValueError(f"its record {name} begins inside another")

    # The record has a header of its own, which is followed by its name, by a filling and by its content
    signature, method, name_size, filling = LOCAL_HEADER.unpack_from(memory, info.header_offset)
    begin = info.header_offset + LOCAL_HEADER.size
    stored_name = bytes(memory[begin : begin + name_size])
    start = begin + name_size + filling

    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    same = signature == SIGNATURE and method == info.compress_type
    same = same and stored_name == info.orig_filename.encode(encoding)
    if not same or start + info.file_size > len(memory):
        raise ValueError(f"its record {name} is not where the directory says")
    return start, start + info.file_size


__all__ = ["Record", "read_records"]
