"""Files that are complete or not there, files of options, and JSON that every program reads."""

import json
import math
import os
import tempfile
from pathlib import Path

import yaml


def write_atomically(path: Path, content: bytes) -> None:
    """Never half a file: written beside its place, then moved there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(name, 0o644)
    os.replace(name, path)


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


__all__ = ["read_options", "to_json", "write_atomically"]
