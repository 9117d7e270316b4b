"""A Lightning checkpoint file, read without trusting it.

A `.ckpt` is a zip archive: a pickle describes the tensors, and records of their own hold the numbers. Both can lie.
Nothing of the file is executed or imported, and neither memory nor time exceeds what its size
explains. `plain_archive.py` and `inert_pickle.py` say which archives and pickles are read. All
tensors together have no more numbers than the file has room for.
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
            # All records are in one folder: FOLDER/data.pkl, FOLDER/byteorder, FOLDER/data/0, ...
            self.records = read_records(self.path)
            self.folder = next(iter(self.records)).partition("/")[0]

            # torch.save writes the numbers as they are in memory. Old files do not say the order
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
        """Read the pickle, which describes everything but the numbers.

        Raises:
            ValueError: it is too long, or damaged.
        """
        record = self.records[f"{self.folder}/data.pkl"]

        # The pickle is the only record that is read as a whole, so that its size is bounded
        size = len(record.content)
        if size > LARGEST_PICKLE:
            raise ValueError(f"its pickle takes {size} bytes, but at most {LARGEST_PICKLE} are read")
        if zlib.crc32(record.content) != record.checksum:
            raise ValueError("its pickle is damaged: the CRC differs")
        return bytes(record.content)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the `state_dict`, in the memory of the file.

        Raises:
            ValueError: there is none, or something in it is not a dense floating-point tensor with a name.
        """
        state_dict = self.content.get("state_dict")
        problem = "it has none, or an empty one"

        if isinstance(state_dict, dict) and state_dict:
            # Everything that is wrong is named at once, as far as it has a name
            other_keys = [key for key in state_dict if not isinstance(key, str)]
            named = {key: stored for key, stored in state_dict.items() if isinstance(key, str)}
            other_values = [name for name, stored in named.items() if not isinstance(stored, StoredTensor)]
            if not other_keys and not other_values:
                return dict(zip(state_dict, self.tensors(state_dict.items()), strict=True))

            wrong = [f"a key of type {key.type_name}" for key in other_keys] + other_values
            problem = list_names("No dense tensor with a name", wrong)

        raise ValueError(
            f"{self.path} holds no 'state_dict' of tensors ({problem}). Give a Lightning checkpoint (.ckpt) of the "
            "MDLM or EDLM repository."
        )

    def averaged_weights(self) -> list[torch.Tensor] | None:
        """Return the averaged (EMA) weights, if there are any.

        Raises:
            ValueError: they are not a list or tuple of dense floating-point tensors.
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

        # They have no names. The position and the way around are what helps where one is refused
        names = (f"ema.shadow_params[{i}] (not read with use_ema=False)" for i in range(len(averaged)))
        return self.tensors(zip(names, averaged, strict=True))

    def tensors(self, named: Iterable[tuple[str, StoredTensor]]) -> list[torch.Tensor]:
        """Return stored tensors, in the memory of the file. The names are for messages.

        Raises:
            ValueError: one is not a dense floating-point tensor, or together they claim more numbers
                than are stored.
        """
        # Views cost no memory, but a model made of them does: a small file must not fill it
        bytes_left = USES_OF_A_BYTE * self.path.stat().st_size
        tensors = []

        for name, stored in named:
            tensor = self.tensor(stored, name)
            tensors.append(tensor)

            bytes_left -= tensor.nbytes
            if bytes_left < 0:
                raise ValueError(
                    f"The tensors of {self.path} lie on top of each other: up to {printable(name)} they claim more "
                    f"than {USES_OF_A_BYTE} times the bytes of the file. Save a copy of each "
                    "({name: x.clone() for name, x in state_dict.items()}) where the file was written."
                )
        return tensors

    def tensor(self, stored: StoredTensor, name: str) -> torch.Tensor:
        """Return a stored tensor, in the memory of the file. The name is for the message.

        Raises:
            ValueError: it is not dense, has no floating-point numbers, or its storage holds fewer
                numbers than it.
        """
        try:
            if not isinstance(stored, StoredTensor) or stored.metadata:
                raise ValueError("it is another kind of object")

            # 1. The storage: numbers of a type, in a record of the archive
            _, dtype, key, *_ = stored.storage
            if not isinstance(dtype, torch.dtype):
                raise ValueError("its numbers are of another type")
            if not isinstance(key, str):  # writing out tuples nested in tuples could take forever
                raise ValueError("its storage is not in the file")
            record = f"{self.folder}/data/{key}"
            if record not in self.records:
                raise ValueError("its storage is not in the file")
            storage = self.records[record].content
            count = len(storage) // dtype.itemsize

            # 2. The shape, which no message shows before it is known to be short
            shape = tuple(stored.shape)
            are_sizes = all(type(size) is int and 0 <= size < 2**63 for size in shape)
            if len(shape) > MOST_DIMENSIONS or not are_sizes:
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
