"""A Lightning checkpoint file, read without trusting it.

A `.ckpt` is a zip archive: a pickle describes the tensors, and records of their own hold the numbers. Both can lie.
Nothing of the file is executed or imported, and neither memory nor time exceeds what its size explains. What the
archive and the pickle may be is said in `plain_archive.py` and `inert_pickle.py`. All tensors together have no more
numbers than the file has room for.
"""

import math
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch

from edlm_hf.inert_pickle import CheckpointUnpickler, StoredTensor
from edlm_hf.plain_archive import read_records
from edlm_hf.terminal import list_names, printable

LARGEST_PICKLE = 2**23  # bytes, for many thousands of tensors
USES_OF_A_BYTE = 2  # EDLM files hold the energy under two names
MOST_DIMENSIONS = 8


class Checkpoint:
    """A memory-mapped file of `torch.save`, of which only the weights that are asked for become tensors.

    Raises:
        ValueError: it is no such file, or it is damaged.
        FileNotFoundError: there is no file `path`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no checkpoint file {path}.")

        try:
            self.records = read_records(self.path)
            self.folder = next(iter(self.records)).partition("/")[0]

            order = self.records.get(f"{self.folder}/byteorder")
            if order is not None and order.content != sys.byteorder.encode():
                raise ValueError(f"its numbers are not {sys.byteorder}-endian")

            content = CheckpointUnpickler(self.description()).load()
        except Exception as error:  # a damaged or hostile file may fail in any way
            raise ValueError(
                f"{path} cannot be read without trusting it ({type(error).__name__}: {error}). If it is yours, write "
                "{'state_dict': ..., 'ema': ...} alone with torch.save where it was trained, and convert that file."
            ) from error

        self.content = content if isinstance(content, dict) else {}

    def description(self) -> bytes:
        """The pickle, whole."""
        record = self.records[f"{self.folder}/data.pkl"]
        size = len(record.content)
        if size > LARGEST_PICKLE:
            raise ValueError(f"its pickle takes {size} bytes, but at most {LARGEST_PICKLE} are read")
        if zlib.crc32(record.content) != record.checksum:
            raise ValueError("its pickle is damaged: the CRC differs")
        return bytes(record.content)

    def weights(self) -> dict[str, torch.Tensor]:
        """The `state_dict`.

        Raises:
            ValueError: there is none, or something in it is no dense floating-point tensor with a name.
        """
        found = self.content.get("state_dict")
        problem = "it has none, or an empty one"

        if isinstance(found, dict) and found:
            wrong = [f"a key of type {name.type_name}" for name in found if not isinstance(name, str)]
            wrong += [name for name, x in found.items() if isinstance(name, str) and not isinstance(x, StoredTensor)]
            if not wrong:
                return dict(zip(found, self.tensors(found.items()), strict=True))
            problem = list_names("No dense tensor with a name", wrong)

        raise ValueError(
            f"{self.path} holds no 'state_dict' of tensors ({problem}). Give a Lightning checkpoint (.ckpt) of the "
            "MDLM or EDLM repository."
        )

    def averaged_weights(self) -> list[torch.Tensor] | None:
        """The averaged (EMA) weights, if there are any.

        Raises:
            ValueError: they are no list or tuple of dense floating-point tensors.
        """
        ema = self.content.get("ema")
        averaged = ema.get("shadow_params") if isinstance(ema, dict) else None
        if averaged is None:
            return None

        if not isinstance(averaged, list | tuple):
            raise ValueError(
                f"The averaged (EMA) weights are a {type(averaged).__name__}, but must be a list or tuple of tensors. "
                "Pass use_ema=False to convert the plain weights."
            )

        names = (f"ema.shadow_params[{i}] (not read with use_ema=False)" for i in range(len(averaged)))
        return self.tensors(zip(names, averaged, strict=True))

    def tensors(self, named: Iterable[tuple[str, StoredTensor]]) -> list[torch.Tensor]:
        """Stored tensors, in the memory of the file. The names are for messages.

        Raises:
            ValueError: one is no dense floating-point tensor, or together they claim more numbers than are stored.
        """
        room = USES_OF_A_BYTE * self.path.stat().st_size
        found = []
        for name, stored in named:
            found.append(self.tensor(stored, name))
            room -= found[-1].nbytes
            if room < 0:
                raise ValueError(
                    f"The tensors of {self.path} lie on top of each other: up to {printable(name)} they claim more "
                    f"than {USES_OF_A_BYTE} times the bytes of the file. Save a copy of each "
                    "({name: x.clone() for name, x in state_dict.items()}) where the file was written."
                )
        return found

    def tensor(self, stored: StoredTensor, name: str) -> torch.Tensor:
        """A stored tensor, in the memory of the file. The name is for the message.

        Raises:
            ValueError: it is not dense, has no floating-point numbers, or its storage holds fewer numbers than it.
        """
        try:
            if not isinstance(stored, StoredTensor) or stored.metadata:
                raise ValueError("it is another kind of object")

            # 1. The storage: numbers of a type, in a record of the archive
            _, dtype, key, *_ = stored.storage
            if not isinstance(dtype, torch.dtype):
                raise ValueError("its numbers are of another type")
            if not isinstance(key, str) or f"{self.folder}/data/{key}" not in self.records:
                raise ValueError("its storage is not in the file")
            storage = self.records[f"{self.folder}/data/{key}"].content
            count = len(storage) // dtype.itemsize

            # 2. The shape, which no message shows before it is known to be short
            shape = tuple(stored.shape)
            if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
                raise ValueError("its shape is none")
            if not 0 < math.prod(shape) <= count:
                raise ValueError(f"its shape is {shape}, but the file has {count} numbers")

            # 3. A view of it: torch refuses strides and offsets that lead out of the storage
            numbers = torch.frombuffer(storage, dtype=dtype, count=count)
            return numbers.as_strided(shape, stored.strides, stored.offset)
        except Exception as error:  # any part of the description may be wrong
            raise ValueError(
                f"{printable(name)} in {self.path} is no dense floating-point tensor of 16, 32 or 64 bits that the "
                f"file holds completely: {error}. Replace it by such a tensor where the file was written, and save "
                "that again."
            ) from error


__all__ = ["Checkpoint"]
