"""A Lightning checkpoint file, read without trusting it.

A `.ckpt` is a zip archive: a pickle describes the tensors, and records of their own hold the numbers. Both can lie.
Nothing of the file is executed or imported, and neither memory nor time exceeds what its size explains:

- Records are read as they lie in the file. One that is compressed or shares its bytes with another is refused.
- The pickle is worked through without `pickle`: what it names and calls becomes an empty shell.
- All tensors together have no more numbers than the file has room for.
"""

import io
import math
import mmap
import os
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch

LARGEST_DESCRIPTION = 2**23  # bytes of the pickle, and of the archive's directory: many thousands of tensors
LOCAL_HEADER = struct.Struct("<4s4xH16xHH")  # signature, compression, lengths of the name and of what follows it
USES_OF_A_BYTE = 2  # EDLM files hold the energy under two names
MOST_DIMENSIONS = 8
MOST_NAMES = 50  # in a message


class InertObject(dict):
    """Stands for any object that a file names. Keeps entries as a dictionary does, and ignores all else."""

    __slots__ = ()


@dataclass
class StoredTensor:
    """What a file says about a dense tensor, in the order of `torch._utils._rebuild_tensor_v2`. Checked when read."""

    storage: tuple  # ("storage", dtype, record, device, number of elements)
    offset: int
    shape: tuple
    strides: tuple
    requires_grad: bool = False
    hooks: object = None
    metadata: object = None


class StoredParameter:
    """An `nn.Parameter` in a file: the tensor in it."""

    def __new__(cls, tensor, *others):
        return tensor


class OtherKey:
    """A key of a dictionary that is not a text. Hashing it takes no time, whatever it was."""

    def __init__(self, key):
        self.type_name = type(key).__name__


class CheckpointUnpickler:
    """Reads a pickle that nobody vouches for, in time and memory proportional to its length.

    Whatever the file names is a dtype or one of the classes above. So these are all that a pickle can call. They
    compute nothing, and no opcode changes them. Only texts become keys: a dictionary of numbers with equal hashes, or
    of nested tuples, takes as long as the writer of the file likes.
    """

    KNOWN = {
        "torch.DoubleStorage": torch.float64,
        "torch.FloatStorage": torch.float32,
        "torch.HalfStorage": torch.float16,
        "torch.BFloat16Storage": torch.bfloat16,
        "torch._utils._rebuild_tensor_v2": StoredTensor,
        "torch._utils._rebuild_parameter": StoredParameter,
        "torch._utils._rebuild_parameter_with_state": StoredParameter,
    }
    CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    VALUES = {"int", "int_or_bool", "float", "str", "bytes", "bytes_or_str", "bytearray"}

    def __init__(self, pickled: bytes):
        self.pickled = pickled
        self.stack: list = []
        self.marks: list[int] = []  # places in the stack
        self.memo: dict[int, object] = {}

    def load(self):
        """The object of the pickle.

        Raises:
            Exception: of any kind, if it is damaged or hostile.
        """
        for opcode, argument, _ in pickletools.genops(self.pickled):  # fails where a length exceeds the file
            puts = opcode.stack_after[0].name if opcode.stack_after else None
            if opcode.name in self.CONSTANTS:
                self.stack.append(self.CONSTANTS[opcode.name])
            elif opcode.arg is not None and puts in self.VALUES:
                self.stack.append(argument)
            else:
                self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument) -> None:
        """Do what one opcode says that is not a plain value."""
        stack = self.stack
        match name:
            # Objects that are used again
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                self.memo[self.place(len(self.memo) if name == "MEMOIZE" else argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[self.place(argument)])

            # Tuples, lists, dictionaries; sets are not of interest
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self.pop_mark())
            case "APPEND" | "APPENDS":
                items = self.pop_mark() if name == "APPENDS" else [stack.pop()]
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self.pop_mark()
                stack.append({})
                self.set_items(items)
            case "SETITEM":
                value = stack.pop()
                self.set_items([stack.pop(), value])
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "EMPTY_SET":
                stack.append(InertObject())
            case "FROZENSET":
                self.pop_mark()
                stack.append(InertObject())

            # Classes, and what is made of them; the state of an object is not given to it
            case "GLOBAL":
                module, _, class_name = argument.partition(" ")
                stack.append(self.find_class(module, class_name))
            case "STACK_GLOBAL":
                class_name = stack.pop()
                stack.append(self.find_class(stack.pop(), class_name))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                del stack[-2 - (name == "NEWOBJ_EX") :]
                stack.append(InertObject())
            case "OBJ" | "INST":
                self.pop_mark()
                stack.append(InertObject())
            case "BINPERSID":
                pass  # the description of a storage, already on the stack

            case "POP" | "BUILD":
                stack.pop()
            case "POP_MARK" | "ADDITEMS":
                self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise UnpicklingError(f"it has the opcode {name}, which no checkpoint needs")

    def pop_mark(self) -> list:
        """What was put on the stack since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def place(self, number: int) -> int:
        """A number of an object that is used again; there are fewer of them than bytes."""
        if not 0 <= number < len(self.pickled):
            raise UnpicklingError(f"it numbers an object beyond its {len(self.pickled)} bytes")
        return number

    def set_items(self, items: list) -> None:
        """Entries [key, value, key, value, ...] of the dictionary on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnpicklingError(f"it gives entries to a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if isinstance(key, str) else OtherKey(key)] = value

    def find_class(self, module: str, name: str):
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnpicklingError("it names a class by something else than texts")
        if module in ("os", "posix", "nt", "sys"):  # torch refuses them, too: no checkpoint needs them
            raise UnpicklingError(f"it names {module}.{printable(name)}")
        return self.KNOWN.get(f"{module}.{name}", InertObject)

    def call(self, function, arguments):
        if function is InertObject:
            return InertObject()
        if function is StoredTensor or function is StoredParameter:
            return function(*arguments)
        raise UnpicklingError(f"it calls a {type(function).__name__}")


class ShortReads(io.FileIO):
    """A file that is read in small pieces only: `zipfile` asks for as much as the archive claims to need."""

    def read(self, size: int = -1) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size < 0 else size
        if wanted > LARGEST_DESCRIPTION:
            raise ValueError(f"its directory takes {wanted} bytes, but at most {LARGEST_DESCRIPTION} are read")
        return super().read(size)


@dataclass(frozen=True)
class Record:
    """A file of the archive: its bytes, where they lie, and their checksum."""

    content: memoryview
    checksum: int


def read_records(path: Path) -> dict[str, Record]:
    """The records of a zip archive by name, each where it lies in the memory-mapped file.

    Raises:
        Exception: the archive is damaged, or a record is not plain: compressed, twice there, or not where its own
            header is, with all its bytes to itself.
    """
    with ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)

    records, end = {}, 0
    for info in infos:
        name = printable(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError(f"its record {name} is not plain: it is compressed or encrypted")
        if info.filename in records:
            raise ValueError(f"it has two records {name}")
        if info.header_offset < end:
            raise ValueError(f"its record {name} begins inside another")

        # The record's own header is followed by its name, by a filling and by its content
        signature, method, name_size, filling = LOCAL_HEADER.unpack_from(memory, info.header_offset)
        begin = info.header_offset + LOCAL_HEADER.size
        stored_name = bytes(memory[begin : begin + name_size])
        start = begin + name_size + filling
        end = start + info.file_size
        encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        same = signature == b"PK\x03\x04" and method == info.compress_type
        if not same or stored_name != info.orig_filename.encode(encoding) or end > len(memory):
            raise ValueError(f"its record {name} is not where the directory says")
        records[info.filename] = Record(memory[start:end], info.CRC)
    return records


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
        if size > LARGEST_DESCRIPTION:
            raise ValueError(f"its pickle takes {size} bytes, but at most {LARGEST_DESCRIPTION} are read")
        if zlib.crc32(record.content) != record.checksum:
            raise ValueError("its pickle is damaged: the CRC differs")
        return bytes(record.content)

    def weights(self) -> dict[str, torch.Tensor]:
        """The `state_dict`.

        Raises:
            ValueError: there is none, or something in it is no dense floating-point tensor with a name.
        """
        found, problem = self.content.get("state_dict"), "it has none, or an empty one"
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
        named = ((f"ema.shadow_params[{i}] (not read with use_ema=False)", x) for i, x in enumerate(averaged))
        return self.tensors(named)

    def tensors(self, named: Iterable[tuple[str, StoredTensor]]) -> list[torch.Tensor]:
        """Stored tensors, in the memory of the file; the names are for messages.

        Raises:
            ValueError: one is no dense floating-point tensor, or together they claim more numbers than are stored.
        """
        found, room = [], USES_OF_A_BYTE * self.path.stat().st_size
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
        """A stored tensor, in the memory of the file; `name` is for the message.

        Raises:
            ValueError: it is not dense, has no floating-point numbers, or its storage holds fewer numbers than it.
        """
        try:
            if not isinstance(stored, StoredTensor) or stored.metadata:
                raise ValueError("it is another kind of object")
            _, dtype, key, *_ = stored.storage
            if not isinstance(dtype, torch.dtype):
                raise ValueError("its numbers are of another type")
            if not isinstance(key, str) or f"{self.folder}/data/{key}" not in self.records:
                raise ValueError("its storage is not in the file")
            storage = self.records[f"{self.folder}/data/{key}"].content

            # Nothing else of the description enters a message before it is known to be small
            shape = tuple(stored.shape)
            if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
                raise ValueError("its shape is none")
            count = len(storage) // dtype.itemsize
            if not 0 < math.prod(shape) <= count:
                raise ValueError(f"its shape is {shape}, but the file has {count} numbers")
            numbers = torch.frombuffer(storage, dtype=dtype, count=count)
            return numbers.as_strided(shape, stored.strides, stored.offset)
        except Exception as error:  # any part of the description may be wrong
            raise ValueError(
                f"{printable(name)} in {self.path} is no dense floating-point tensor of 16, 32 or 64 bits that the "
                f"file holds completely: {error}. Replace it by such a tensor where the file was written, and save "
                "that again."
            ) from error


def printable(name: str, most: int = 200) -> str:
    """A name that a file gives, as a message can quote it: short, without characters that steer a terminal."""
    short = name if len(name) <= most else f"{name[:most]}..."
    return short if short.isprintable() else ascii(short)


def list_names(title: str, names: list[str]) -> str:
    """All names with their number; of very many the first ones."""
    rest = ", ..." if len(names) > MOST_NAMES else ""
    return f"{title} ({len(names)}): {', '.join(map(printable, names[:MOST_NAMES]))}{rest}."


__all__ = ["Checkpoint", "CheckpointUnpickler", "InertObject", "list_names", "printable"]
