"""Files that are written whole or not at all, faults of damaged ones, YAML options and JSON."""

import json
import math
import os
import secrets
import shutil
import zipfile
from pathlib import Path

import yaml

LFS_POINTER = b"version https://git-lfs"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its destination, then move it there: nobody ever reads half of it.

    A link stays a link to the file that is written, and a file that is replaced keeps its permissions. A pipe or a
    device is written into.
    """
    # 1. What cannot be replaced. `/dev/stdout` can lead to a file that somebody has open
    is_special = path.exists() and not path.is_file()
    is_open = path.absolute().parts[1:2] in (("dev",), ("proc",))
    if is_special or is_open:
        with open(path, "wb") as stream:
            stream.write(content)
        return

    # 2. In the same folder as the file: only within a disk does os.replace move in one step
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fault_of(path: Path) -> str | None:
    """Describe the fault of a file of a model or a checkpoint. Return None if it has none.

    The name of the file says its format. Weights are not read: the header of `.safetensors` gives
    the length of the file, and archives of PyTorch have checksums.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            return "is empty"

        # What a clone without Git LFS has in place of a large file: a few lines of text
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
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
    """Describe what keeps a file from being a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"is damaged: it is not JSON ({error})"

    if not isinstance(content, dict):
        return "is damaged: it is JSON, but does not hold names with values"
    return None


def fault_of_safetensors(path: Path, size: int) -> str | None:
    """Compare the size of a file with the one that its header needs.

    The format: 8 bytes with the length of the header, the header (JSON), then the weights, which
    end at the last offset.
    """
    with open(path, "rb") as file:
        # A damaged file can claim any length, so that it is compared before so much is read
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            return f"is damaged or cut: it has {size:,} bytes, too few for its header"
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            return "is damaged: its header cannot be read"

    # Offsets count from the end of the header
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"is damaged or cut: it has {size:,} bytes, but needs {expected:,}"
    return None


def fault_of_archive(path: Path) -> str | None:
    """Check a file of `torch.save`: a zip archive with a checksum for each of its parts."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        return "is damaged or cut: it is not a file of torch.save"

    if damaged is not None:
        return f"is damaged: the checksum of {damaged} is another"
    return None


class OptionLoader(yaml.SafeLoader):
    """Makes texts, numbers, lists and dictionaries only, and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice, leave one of both out")
        return super().construct_mapping(node, deep)


def read_options(path: str | Path) -> dict:
    """Read a YAML file of lines `option: value`.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    # An empty file is no options
    try:
        with open(path, encoding="utf-8") as file:
            options = OptionLoader(file).get_single_data() or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None

    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no lines `option: value`.")
    return options


def to_json(value, **options) -> str:
    """Write `value` as JSON, with null in place of every number that is not finite.

    Args:
        options: of `json.dumps`.
    """
    # json.dumps alone would write NaN and Infinity, which other readers of JSON refuse
    finite = without_infinities(value)
    return json.dumps(finite, allow_nan=False, **options)


def without_infinities(value):
    """Copy nested dicts and lists with None in place of infinite numbers and NaN."""
    if isinstance(value, dict):
        return {name: without_infinities(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["fault_of", "read_options", "to_json", "write_atomically"]
