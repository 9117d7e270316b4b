"""Finished parts of a long measurement, found again by everything that they depend on.

The same command goes on after an interruption. One that asks for more computes the new parts only.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from edlm_hf.files import to_json, write_atomically


class Parts:
    """A folder of finished parts. The name of each file is a hash of the part's inputs."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, kind: str, inputs: dict, compute: Callable[[], dict]) -> dict:
        """Return the stored result for these `inputs`. If there is none, compute and store it.

        Numbers that are not finite come back as None.

        Args:
            kind: the first word of the file's name.
            inputs: everything that the result depends on, the machine excepted, in values that JSON
                can hold.
        """
        # 16 hexadecimal digits are 64 bits: parts of one folder do not collide
        key = to_json(inputs, sort_keys=True)
        identity = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = self.folder / f"{kind}-{identity}.json"

        # A new result is read back too, so that both ways give the same types
        if not path.exists():
            content = {"inputs": inputs, "result": compute()}
            write_atomically(path, to_json(content).encode())
        return json.loads(path.read_text())["result"]


def digest_of_weights(model: nn.Module) -> str:
    """Hash of all weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        description = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        digest.update(description.encode())

        # Raw bytes, because numpy has no bfloat16
        values = tensor.detach().cpu().contiguous().flatten()
        raw = values.view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def digest_of_rows(rows: Sequence[Sequence[int]]) -> str:
    """Hash of rows of token ids."""
    content = json.dumps(rows)
    return hashlib.sha256(content.encode()).hexdigest()


def digest_of_source(name: str) -> str:
    """Hash of a local file or folder, of its contents. Of anything else, such as a dataset on the Hub, the name."""
    path = Path(name).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif not path.is_file():
        return name

    # What the files are called counts too, but not where they lie
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


__all__ = ["Parts", "digest_of_rows", "digest_of_source", "digest_of_weights"]
