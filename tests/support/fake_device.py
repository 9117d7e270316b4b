"""A second device without hardware: tensors that hold their data on the CPU, but say `fake:0` or `fake:1`.

They go through PyTorch's interface for backends written in Python. An operation on them computes on the CPU, after it
was checked by the rules of CUDA: operands on different devices raise `WrongDevice`. With `no_float64()` the rules are
those of MPS, which has no float64. `host_waits()` counts how often the host waits for the device.

Importing this module registers the backend for the whole process (`torch.utils.backend_registration`).
"""

import collections
import contextlib
import traceback

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from edlm_hf.modeling import devices

aten = torch.ops.aten
DEVICE = "fake"
CPU = torch.device("cpu")

# Operations whose operands may stand on different devices
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
# Operations that take indices, which may stand on the CPU
INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# Operations whose result, or its shape, the host has to read from the device
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}

has_float64 = True
# (reason, place in the code) -> number, while somebody counts
waits: collections.Counter | None = None


class WrongDevice(RuntimeError):
    """An operation that a real device refuses."""


class FakeTensor(torch.Tensor):
    """A tensor on a fake device.

    Args:
        data: its numbers, on the CPU.
        device: where it says that it is.
    """

    @staticmethod
    def __new__(cls, data: torch.Tensor, device: torch.device):
        if data.dtype in (torch.float64, torch.complex128) and not has_float64:
            raise WrongDevice(f"float64 on {device}, at {place()}")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=device,
        )
        tensor.on_cpu = data
        return tensor

    def __repr__(self):
        return f"FakeTensor({self.on_cpu}, device={self.device})"

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self):
        raise WrongDevice(f"numpy() of a tensor on {self.device}, at {place()}")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        check_devices(function, tensors, args)
        check_generators(function, kwargs)
        count_waits(function, tensors, args, kwargs)
        return compute(function, tensors, args, kwargs)


def compute(function, tensors: list[torch.Tensor], args, kwargs):
    """The result of an operation, computed on the CPU and put where a device would have it."""
    device = kwargs.get("device") or device_of_result(function, tensors)
    on_cpu = {name: CPU if name == "device" else value for name, value in kwargs.items()}
    result = function(*map_tensors(data_of, args), **map_tensors(data_of, on_cpu))

    # Operations in place give their argument back
    arguments = {id(tensor.on_cpu): tensor for tensor in tensors if is_fake(tensor)}

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        if id(x) in arguments:
            return arguments[id(x)]
        return x if device.type != DEVICE else FakeTensor(x, device)

    return map_tensors(wrapped, result)


def device_of_result(function, tensors: list[torch.Tensor]) -> torch.device:
    """Numbers (0 dimensions) of the CPU follow the tensors of a device. Copies stay with their target."""
    if function in COPIES or function in INDEXING:
        return tensors[0].device
    with_dimensions = [tensor.device for tensor in tensors if tensor.dim()]
    on_devices = [tensor.device for tensor in tensors if is_fake(tensor)]
    return (with_dimensions or on_devices)[0]


def check_devices(function, tensors: list[torch.Tensor], args) -> None:
    """Raise WrongDevice where an operation on CUDA would.

    All operands stand on one device. The exceptions are copies, numbers on the CPU, and indices on the CPU.
    """
    if function in COPIES:
        return
    if function in INDEXING:
        indices = {id(index) for index in tensors_in(args[1])}
        others = [x for x in tensors if id(x) not in indices or is_fake(x)]
    else:
        others = tensors

    devices = {x.device for x in others if is_fake(x) or x.dim()}
    if len(devices) > 1:
        raise WrongDevice(f"{function} of tensors on {', '.join(sorted(map(str, devices)))}, at {place()}")


def check_generators(function, kwargs) -> None:
    """Raise WrongDevice if random numbers of the device were to come from a generator of the CPU."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != DEVICE:
        raise WrongDevice(f"{function} with a generator of the CPU, at {place()}")


def count_waits(function, tensors: list[torch.Tensor], args, kwargs) -> None:
    """Count an operation for whose end the host waits."""
    # the length of the result is the sum of the repeats
    is_repeat = function is aten.repeat_interleave.Tensor
    if function in READS or (is_repeat and kwargs.get("output_size") is None):
        note_wait("read")
    elif function in INDEXING:
        count_waits_of_indices(args[1])
    elif function in COPIES:
        count_waits_of_copy(function, tensors, args, kwargs)


def count_waits_of_indices(indices) -> None:
    """Count boolean indices, whose number of elements is read, and indices that are copied."""
    for index in tensors_in(indices):
        if index.dtype in (torch.bool, torch.uint8):
            note_wait("bool index")
        elif not is_fake(index):
            note_wait("index on the CPU")


def count_waits_of_copy(function, tensors: list[torch.Tensor], args, kwargs) -> None:
    """Count a copy between the device and the CPU, unless the host goes on at once."""
    # copy_(target, source), _copy_from(source, target), _to_copy(source, device=...)
    if function is aten.copy_.default:
        target, source = tensors[:2]
        device = target.device
    elif function is aten._copy_from.default:
        source, target = tensors[:2]
        device = target.device
    else:
        source = tensors[0]
        device = kwargs.get("device") or source.device

    if source.device.type == device.type:
        return

    non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    if device.type == "cpu":
        note_wait("copy to the CPU")
    elif not non_blocking:
        note_wait("copy from the CPU")


def note_wait(reason: str) -> None:
    if waits is not None:
        waits[reason, place()] += 1


@contextlib.contextmanager
def host_waits():
    """Count for what, and where in the package, the host waits: a Counter of (reason, place)."""
    global waits
    before = waits
    waits = collections.Counter()
    try:
        yield waits
    finally:
        waits = before


@contextlib.contextmanager
def no_float64():
    """Let the device refuse float64, as MPS does, and the package know it."""
    global has_float64
    has_float64 = False
    devices.WITHOUT_FLOAT64.add(DEVICE)
    try:
        yield
    finally:
        has_float64 = True
        devices.WITHOUT_FLOAT64.remove(DEVICE)


class PlainAttention(TorchFunctionMode):
    """Attention by matrix products: the fused kernels choose by the device, and know no fake one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.scaled_dot_product_attention:
            kwargs = {name: value for name, value in (kwargs or {}).items() if name != "enable_gqa"}
            return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        return function(*args, **(kwargs or {}))


def on_device(x: torch.Tensor, index: int = 0) -> torch.Tensor:
    """A copy of a tensor on `fake:index`."""
    return FakeTensor(x.detach().clone(), torch.device(DEVICE, index))


def move(module: nn.Module, index: int = 0) -> nn.Module:
    """Put parameters and buffers of a module, which several parts may share, onto `fake:index`."""
    moved = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not is_fake(parameter):
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        on_device(parameter, index),
                        parameter.requires_grad,
                    )
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not is_fake(buffer):
                part._buffers[name] = on_device(buffer, index)

    return module


def is_fake(x) -> bool:
    return isinstance(x, FakeTensor)


def data_of(x: torch.Tensor) -> torch.Tensor:
    """The numbers of a fake tensor. Other tensors stay as they are."""
    return x.on_cpu if isinstance(x, FakeTensor) else x


def map_tensors(function, tree):
    """Apply a function to all tensors in tuples, lists and dictionaries (PyTorch's own way is three times slower)."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tensors(function, value) for value in tree])
    return tree


def tensors_in(tree) -> list[torch.Tensor]:
    tensors = []
    map_tensors(tensors.append, tree)
    return tensors


def place() -> str:
    """The innermost line of the package that is being executed, as file:line."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename.replace("\\", "/")
        in_package = "/modeling/" in path or "/edlm_hf/" in path
        if in_package and "site-packages" not in path and "/tests/" not in path:
            return f"{path.rsplit('/', 1)[-1]}:{frame.lineno}"
    return "elsewhere"


class FakeModule(backend_registration._DummyBackendModule):
    """The answers to what PyTorch asks of a device."""

    def is_available(self):
        return False  # so that nobody takes it for the accelerator of this machine

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def device_count(self):
        return 2

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


def factory(function):
    """The operation that makes a tensor from nothing, for the fake device."""

    def make(*args, device=None, pin_memory=None, **kwargs):
        device = torch.device(DEVICE, torch.device(device).index or 0)
        return FakeTensor(function(*args, device=CPU, **kwargs), device)

    return make


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if is_fake(target) != is_fake(source):
        count_waits(aten._copy_from.default, [source, target], (source, target, non_blocking), {})
    data_of(target).copy_(data_of(source))
    return target


backend_registration._setup_privateuseone_for_python_backend(rename=DEVICE, backend_module=FakeModule())
LIBRARY = torch.library.Library("aten", "IMPL")
LIBRARY.impl("_copy_from", copy_from, "PrivateUse1")
for overload in (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.start_step,
    aten.eye.default,
    aten.eye.m,
    aten.linspace.default,
    aten.randperm.default,
    aten.randperm.generator,
):
    LIBRARY.impl(overload.name().removeprefix("aten::"), factory(overload), "PrivateUse1")
