"""Nothing that is in a Lightning checkpoint runs."""

import collections
import functools
import os
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from lightning_files import assert_holds, assert_refused, parameters, write
from published import golden

from edlm_hf.conversion import convert_lightning_checkpoint
from edlm_hf.inert_pickle import CheckpointUnpickler, InertObject


class Trap:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [eval, exec, subprocess.getoutput, os.system])
def test_calls_in_the_file_are_not_made(function, tmp_path):
    fired = tmp_path / "fired"
    code = f"open({str(fired)!r}, 'w').close()" if function in (eval, exec) else f"echo > '{fired}'"
    path = write(
        tmp_path / "mdlm.ckpt",
        golden("model_dit"),
        hyper_parameters={"config": [Trap(function, code)]},
    )
    if function is os.system:  # torch blocks this module whatever stands for it
        assert_refused(
            path,
            tmp_path,
            "^(?!.*weights_only).*cannot be read without trusting it.*posix.system",
        )
    else:
        assert_holds(convert_lightning_checkpoint(path, tmp_path / "out"), golden("model_dit"))
    assert not fired.exists()

    torch.load(path, weights_only=False)
    assert fired.exists(), "the trap would not have worked"


def test_calls_in_place_of_weights_are_not_made(tmp_path):
    fired = tmp_path / "fired"
    trap = Trap(eval, f"open({str(fired)!r}, 'w').close()")
    torch.save({"state_dict": trap}, tmp_path / "a.ckpt")
    torch.save({"state_dict": golden("model_dit") | {"backbone.x": trap}}, tmp_path / "b.ckpt")
    write(
        tmp_path / "c.ckpt",
        golden("model_dit"),
        averaged=[trap] * len(parameters(golden("model_dit"))),
    )
    torch.save(trap, tmp_path / "d.ckpt")

    for name, message in [
        ("a", "state_dict"),
        ("b", "state_dict"),
        ("c", "use_ema=False"),
        ("d", "state_dict"),
    ]:
        assert_refused(tmp_path / f"{name}.ckpt", tmp_path, message)
    assert not fired.exists()


FOREIGN = """
import collections, enum

class Node:
    def __init__(self, value):
        self.value = value

class Stateful(Node):
    def __getstate__(self):
        return (1, "a tuple", self.value)
    def __setstate__(self, state):
        raise RuntimeError("this code must not run")

class Argued(str):
    def __getnewargs__(self):
        return ("text",)

class Colour(enum.Enum):
    RED = 1

class AttributeDict(dict):
    def __getattr__(self, name):
        return self[name]
    __setattr__ = dict.__setitem__
    def __setitem__(self, key, value):
        raise RuntimeError("this code must not run")

class DictOfState(dict):
    pass

class ListOfState(list):
    def extend(self, values):
        raise RuntimeError("this code must not run")

class SetOfState(set):
    pass

Pair = collections.namedtuple("Pair", "a b")
"""


def with_state(kind):
    """A container with entries and an attribute."""
    container = kind([("a", 1), ("b", 2)])
    container.attribute = "value"
    return container


@pytest.mark.parametrize("protocol", [2, 5])
def test_objects_of_unknown_classes_become_empty_shells(protocol, tmp_path, monkeypatch):
    module = types.ModuleType("foreign_training_code")
    exec(FOREIGN, module.__dict__)
    for value in vars(module).values():
        if isinstance(value, type):
            value.__module__ = module.__name__

    cache = collections.defaultdict(dict, {"key": {"inner": module.Node(1)}})
    objects = {
        "config": module.Node({"nested": [module.Node(1), module.Stateful(2), module.Argued("x")]}),
        "classes": (module.Node, module.Colour.RED, dict, functools.partial(print, 1)),
        "cache": cache,
        "numbers": (np.float64(1.5), np.arange(3), np.random.default_rng(0)),
        "mapping": module.AttributeDict({"inner": module.AttributeDict(a=1), module.Node(1): 2}),
        "containers": [with_state(kind) for kind in (module.DictOfState, module.ListOfState, module.SetOfState)],
        "standard": [collections.deque([1, 2], 5), collections.Counter("aab"), module.Pair(1, 2), {module.Pair(1, 2)}],
        "torch": [torch.zeros(2).to_sparse(), torch.arange(3), torch.float16, torch.nn.Linear(2, 2), torch.Size([2])],
        "method": module.Node(1).__init__,
    }
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "mdlm.ckpt"
    torch.save(
        {"state_dict": golden("model_dit"), "hyper_parameters": objects},
        path,
        pickle_protocol=protocol,
    )
    monkeypatch.delitem(sys.modules, module.__name__)
    (tmp_path / "foreign_training_code.py").write_text("raise RuntimeError('this module must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert_holds(convert_lightning_checkpoint(path, tmp_path / "out"), golden("model_dit"))
    assert module.__name__ not in sys.modules
    with pytest.raises(RuntimeError, match="must not be imported"):
        torch.load(path, weights_only=False)


PICKLES = {  # what the file puts under `state_dict`, as opcodes
    "attributes of a known function": b"ctorch._utils\n_rebuild_tensor_v2\nN}U\x06shape\x00K\x01s\x86b",
    "attributes of a stub class": b"cbuiltins\neval\nN}U\x08__init__cbuiltins\nexec\ns\x86b",
    "entries of a class": b"cbuiltins\neval\nU\x01aK\x01s",
    "a call of a dtype": b"ctorch\nFloatStorage\n)R",
    "a tensor that was never initialised": b"}U\x01xctorch._utils\n_rebuild_tensor_v2\n)\x81s",
    "a storage made of anything": b"}U\x01xctorch._utils\n_rebuild_tensor_v2\n(U\x01aK\x00(K\x02t(K\x01ttRs",
    "an enormous memo": b"Nr\xff\xff\xff\x7f",
    "an enormous array": b"\x96" + bytes(4) + b"\x01" + bytes(3),
    "an enormous shape": b"}U\x01xctorch._utils\n_rebuild_tensor_v2\n((U\x01actorch\nFloatStorage\nU\x010t"
    b"K\x00(J\xff\xff\xff\x7fU\x01at(K\x01ttRs",
}


@pytest.mark.parametrize("opcodes", PICKLES.values(), ids=PICKLES)
def test_pickles_that_torch_would_not_write_are_refused_and_change_nothing(opcodes, tmp_path):
    path = tmp_path / "hostile.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}U\x0astate_dict" + opcodes + b"s.")
        archive.writestr("archive/data/0", bytes(64))
    known = [InertObject, *CheckpointUnpickler.KNOWN.values()]
    before = [dict(vars(x)) for x in known if isinstance(x, type)]
    assert_refused(path, tmp_path, "hostile.ckpt")
    assert [dict(vars(x)) for x in known if isinstance(x, type)] == before


def test_reading_a_file_allows_nothing_to_later_reads(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"), hyper_parameters=Trap(eval, "1"))
    convert_lightning_checkpoint(path, tmp_path / "out")
    with pytest.raises(Exception, match="eval"):
        torch.load(path, weights_only=True)
