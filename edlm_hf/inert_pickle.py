"""A pickle that nobody vouches for, read without `pickle`: the objects in it become empty shells.

Nothing is imported or executed, and time and memory are proportional to its length.

`torch.load` with `weights_only=True`, and inert classes for the names that it does not know, was tried (torch 2.13). It
hashes every key: a file of 935 bytes, with tuples in tuples as a key, kept it busy without end. It also refuses honest
files with a set in their settings.
"""

import pickletools
from dataclasses import dataclass
from pickle import UnpicklingError

import torch

from edlm_hf.terminal import printable


class InertObject(dict):
    """Stands for any object that a file names. It keeps entries as a dictionary does, and nothing else."""

    __slots__ = ()


@dataclass
class StoredTensor:
    """The description of a dense tensor in a file, unchecked: the arguments of `torch._utils._rebuild_tensor_v2`."""

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
    """Stands for a key of a dictionary that is not a text. Hashing it takes no time, whatever it was."""

    def __init__(self, key):
        self.type_name = type(key).__name__


class CheckpointUnpickler:
    """The stack machine of a pickle.

    Whatever the file names is a dtype or one of the classes above, so that these are all it can call. They compute
    nothing, and no opcode changes them.

    Only texts become keys. A dictionary of numbers with equal hashes, or of tuples nested in each other, would take as
    long as the writer of the file likes.
    """

    # The names that mean something to us. All others become an InertObject
    KNOWN = {
        "torch.DoubleStorage": torch.float64,
        "torch.FloatStorage": torch.float32,
        "torch.HalfStorage": torch.float16,
        "torch.BFloat16Storage": torch.bfloat16,
        "torch._utils._rebuild_tensor_v2": StoredTensor,
        "torch._utils._rebuild_parameter": StoredParameter,
        "torch._utils._rebuild_parameter_with_state": StoredParameter,
    }
    REFUSED = ("os", "posix", "nt", "sys")  # modules that torch refuses, too: no checkpoint needs them

    # Plain values: opcodes without an argument, and types in `pickletools` of those with one
    CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    VALUES = {"int", "int_or_bool", "float", "str", "bytes", "bytes_or_str", "bytearray"}

    def __init__(self, pickled: bytes):
        self.pickled = pickled
        self.stack: list = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, object] = {}  # objects that are used again, by number

    def load(self):
        """Return the object of the pickle.

        Raises:
            Exception: of any kind, if it is damaged or hostile.
        """
        # genops raises where a length exceeds the file
        for opcode, argument, _ in pickletools.genops(self.pickled):
            # The type that pickletools gives for what the opcode puts on the stack
            puts = opcode.stack_after[0].name if opcode.stack_after else None

            if opcode.name in self.CONSTANTS:
                self.stack.append(self.CONSTANTS[opcode.name])
            elif opcode.arg is not None and puts in self.VALUES:
                self.stack.append(argument)
            else:
                self.step(opcode.name, argument)

        return self.stack.pop()

    def step(self, name: str, argument) -> None:
        """Execute one opcode that does not put a plain value on the stack."""
        stack = self.stack

        match name:
            # Objects that are used again
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[self.memo_number(argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[self.memo_number(argument)])

            # Tuples
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]

            # Lists
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self.pop_mark())
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS":
                self.extend(self.pop_mark())

            # Dictionaries
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

            # Sets, of which nothing is kept
            case "EMPTY_SET":
                stack.append(InertObject())
            case "ADDITEMS":
                self.pop_mark()
            case "FROZENSET":
                self.pop_mark()
                stack.append(InertObject())

            # Classes and functions, and what is made of them
            case "GLOBAL":
                module, _, class_name = argument.partition(" ")
                stack.append(self.find_class(module, class_name))
            case "STACK_GLOBAL":
                class_name = stack.pop()
                stack.append(self.find_class(stack.pop(), class_name))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "NEWOBJ":
                del stack[-2:]
                stack.append(InertObject())
            case "NEWOBJ_EX":
                del stack[-3:]
                stack.append(InertObject())
            case "OBJ" | "INST":
                self.pop_mark()
                stack.append(InertObject())
            case "BUILD":
                stack.pop()  # the state of an object, which is not given to it
            case "BINPERSID":
                pass  # the description of a storage, which is on the stack already

            # What is on the stack
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise UnpicklingError(f"it has the opcode {name}, which no checkpoint needs")

    def pop_mark(self) -> list:
        """Take everything from the stack that was put there since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def memo_number(self, number: int) -> int:
        """Return the number of an object that is used again. There are fewer of them than bytes."""
        if not 0 <= number < len(self.pickled):
            raise UnpicklingError(f"it numbers an object beyond its {len(self.pickled)} bytes")
        return number

    def extend(self, items: list) -> None:
        """Append to the list on top of the stack. Anything else there stays as it is."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        """Give the dictionary on top of the stack entries [key, value, key, value, ...]."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnpicklingError(f"it gives entries to a {type(target).__name__}")

        for key, value in zip(items[::2], items[1::2], strict=True):
            safe_key = key if isinstance(key, str) else OtherKey(key)
            target[safe_key] = value

    def find_class(self, module: str, name: str):
        """Return a dtype or one of the classes above in place of a name. Nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnpicklingError("it names a class by something else than texts")
        if module in self.REFUSED:
            raise UnpicklingError(f"it names {module}.{printable(name)}")
        return self.KNOWN.get(f"{module}.{name}", InertObject)

    def call(self, function, arguments):
        """Make an object of one of the classes above. Anything else is refused."""
        if function is InertObject:
            return InertObject()
        if function is StoredTensor or function is StoredParameter:
            return function(*arguments)
        raise UnpicklingError(f"it calls a {type(function).__name__}")


__all__ = ["CheckpointUnpickler", "InertObject", "StoredTensor"]
