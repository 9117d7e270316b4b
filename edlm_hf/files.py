"""Files that are complete or not there, what is wrong with others, files of options, and JSON that everybody reads."""

import json
import math
import os
import tempfile
import zipfile
from pathlib import Path

import yaml

POINTER = b"version https://git-lfs"


def write_atomically(path: Path, content: bytes) -> None:
    """Never half a file: written beside its place, then moved there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def fault_of(path: Path) -> str | None:
    """What is wrong with a file of a model or a checkpoint, as its name says it should be; None if nothing is seen.

    Weights are not read: of `.safetensors` the header and the length count, of PyTorch's archives the checksums.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            return "is empty"
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return "is a pointer of Git LFS, not the file itself (git lfs pull gets it)"
        if path.suffix == ".json":
            return fault_of_json(path)
        if path.suffix == ".safetensors":
            return fault_of_safetensors(path, size)
        if path.suffix in (".bin", ".pt", ".pth"):
            return fault_of_archive(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def fault_of_json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"is damaged: it is not JSON ({error})"
    return None if isinstance(content, dict) else "is damaged: it is JSON, but does not hold names with values"


def fault_of_safetensors(path: Path, size: int) -> str | None:
    """The format: 8 bytes with the length of the header, the header (JSON), then the weights up to the last offset."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            return f"is damaged or cut: it has {size:,} bytes, too few for its header"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            return "is damaged: its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"is damaged or cut: it has {size:,} bytes, but needs {expected:,}"


def fault_of_archive(path: Path) -> str | None:
    """`torch.save` writes zip archives, which have a checksum for each of their parts."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        return "is damaged or cut: it is not a file of torch.save"
    return None if damaged is None else f"is damaged: the checksum of {damaged} is another"


def read_options(path: str | Path) -> dict:
    """What a YAML file of lines `option: value` sets.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no lines `option: value`.")
    return options


def to_json(value, **options) -> str:
    """`value` as JSON, null in place of every number that is not finite; `options` are those of `json.dumps`."""
    return json.dumps(plain(value), allow_nan=False, **options)


def plain(value):
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["fault_of", "read_options", "to_json", "write_atomically"]
