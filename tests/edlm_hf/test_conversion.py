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
from published import golden
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.conversion import convert_lightning_checkpoint
from edlm_hf.inert_pickle import CheckpointUnpickler, InertObject


def noise(weights, seed=0):
    """Other weights of the same names and shapes (the rotary frequencies stay)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: x if name.endswith("inv_freq") else torch.randn(x.shape, generator=generator)
        for name, x in weights.items()
    }


def parameters(weights):
    """The tensors in the order of `parameters()`: that of the file, without buffers."""
    return [x for name, x in weights.items() if not name.endswith("inv_freq")]


def edlm_weights(denoiser=None, energy=None):
    """The state dict of an EDLM checkpoint: the denoiser in a wrapper, the energy twice."""
    denoiser = denoiser or golden("model_dit")
    energy = energy or golden("model_nce")
    wrapped = {f"backbone.{name}": x for name, x in denoiser.items()}
    return wrapped | {f"backbone.{name}": x for name, x in energy.items()} | energy


def write(path, state_dict, averaged=None, **others):
    """A checkpoint in Lightning's layout."""
    content = {"epoch": 1, "global_step": 3, "state_dict": state_dict, "optimizer_states": [{"state": {}}]} | others
    if averaged is not None:
        content["ema"] = {"decay": 0.9999, "num_updates": 3, "shadow_params": averaged}
    torch.save(content, path)
    return path


def assert_holds(model, weights, prefix=""):
    """The model's parameters are exactly `weights`, whose names carry `prefix`."""
    expected = {name.removeprefix(prefix): x for name, x in weights.items() if not name.endswith("inv_freq")}
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], x) for name, x in expected.items())


def assert_refused(path, folder, message, **options):
    """Conversion raises, and leaves nothing behind."""
    before = set(folder.iterdir())
    with pytest.raises(ValueError, match=message):
        convert_lightning_checkpoint(path, folder / "out", **options)
    assert set(folder.iterdir()) == before


# -------------------------------------------------------------------------------------------------- the three kinds


def test_denoiser_is_converted_and_gives_the_published_logits(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    model = convert_lightning_checkpoint(path, tmp_path / "out", model_length=24)
    assert type(model) is MDLMForMaskedLM and not model.training
    assert_holds(model, golden("model_dit"))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert_holds(loaded, golden("model_dit"))
    reference = golden("a_denoiser")
    torch.testing.assert_close(loaded(reference["xt"]).logits, reference["raw_logits_tc0"], atol=2e-4, rtol=0)


def test_sizes_come_from_shapes_and_the_rest_from_the_caller(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    options = {"model_length": 24, "mask_token_id": 5, "time_conditioning": True, "noise_schedule": "cosine"}
    config = convert_lightning_checkpoint(path, tmp_path / "out", **options, dropout=0.25).config
    sizes = {"vocab_size": 33, "hidden_dim": 64, "cond_dim": 32, "n_blocks": 3, "n_heads": 4}
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert {name: getattr(config, name) for name in options} == options
    assert config.dropout == 0.25


def test_autoregressive_model_is_converted(tmp_path):
    path = write(tmp_path / "ar.ckpt", golden("model_ar"), parameters(golden("model_ar")))
    model = convert_lightning_checkpoint(path, tmp_path / "out", model_length=24)
    assert type(model) is MDLMForCausalLM and model.config.causal
    assert_holds(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), golden("model_ar"))


def test_energy_checkpoint_becomes_the_composite_and_gives_the_published_energies(tmp_path):
    path = write(tmp_path / "edlm.ckpt", edlm_weights())
    model = convert_lightning_checkpoint(path, tmp_path / "out", model_length=24)
    assert type(model) is EDLMForMaskedDiffusion
    assert (model.config.energy_type, model.config.mask_token_id) == ("nce", 32)
    loaded = EDLMForMaskedDiffusion.from_pretrained(tmp_path / "out")
    assert_holds(loaded.denoiser, golden("model_dit"))
    assert_holds(loaded.energy_model, golden("model_nce"), prefix="ebm.")
    reference = golden("c_nce_energy")
    energy = loaded.energy_model(reference["x0_data"], reference["xt"]).energy
    torch.testing.assert_close(energy, reference["energy_data_tc0"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kept", ["ebm.", "backbone.ebm."])
def test_one_copy_of_the_energy_is_enough(kept, tmp_path):
    other = {"ebm.": "backbone.ebm.", "backbone.ebm.": "ebm."}[kept]
    weights = {name: x for name, x in edlm_weights().items() if not name.startswith(other)}
    model = convert_lightning_checkpoint(write(tmp_path / "edlm.ckpt", weights), tmp_path / "out")
    assert_holds(model.energy_model, golden("model_nce"), prefix="ebm.")


def test_copies_of_the_energy_that_differ_are_refused(tmp_path):
    weights = edlm_weights()
    weights["ebm.vocab_proj.bias"] = weights["ebm.vocab_proj.bias"] + 1e-6
    assert_refused(write(tmp_path / "edlm.ckpt", weights), tmp_path, r"copies differ.*\(1\): vocab_proj.bias\.")


def test_autoregressive_energy_says_how_to_get_there(tmp_path):
    energy = {name.replace("backbone.", "ebm."): x for name, x in golden("model_ar").items()}
    path = write(tmp_path / "edlm.ckpt", edlm_weights(energy=energy))
    assert_refused(path, tmp_path, "is no NCE network.*from_components")


# ------------------------------------------------------------------------------------------------ averaged weights


def test_averaged_weights_are_preferred_and_can_be_declined(tmp_path):
    weights = golden("model_dit")
    path = write(tmp_path / "mdlm.ckpt", noise(weights), parameters(weights))
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "averaged"), weights)
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "plain", use_ema=False), noise(weights))


@pytest.mark.parametrize("covered", [("denoiser",), ("energy",), ("denoiser", "energy")])
def test_averaged_weights_of_an_energy_checkpoint_may_cover_either_part_or_both(covered, tmp_path):
    averaged = {"denoiser": golden("model_dit"), "energy": golden("model_nce")}
    plain = {"denoiser": noise(averaged["denoiser"]), "energy": noise(averaged["energy"], seed=1)}
    shadow = [x for part in covered for x in parameters(averaged[part])]
    path = write(tmp_path / "edlm.ckpt", edlm_weights(**plain), shadow)
    model = convert_lightning_checkpoint(path, tmp_path / "out")
    expected = plain | {part: averaged[part] for part in covered}
    assert_holds(model.denoiser, expected["denoiser"])
    assert_holds(model.energy_model, expected["energy"], prefix="ebm.")


@pytest.mark.parametrize("kind", [tuple, lambda shadow: [torch.nn.Parameter(x) for x in shadow]])
def test_averaged_weights_may_be_a_tuple_or_parameters(kind, tmp_path):
    weights = golden("model_dit")
    path = write(tmp_path / "mdlm.ckpt", noise(weights), kind(parameters(weights)))
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "out"), weights)


@pytest.mark.parametrize("averaged", [{}, collections.deque([torch.zeros(2)]), [torch.zeros(2, dtype=torch.int64)]])
def test_averaged_weights_that_cannot_be_read_are_refused_rather_than_ignored(averaged, tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"), averaged)
    assert_refused(path, tmp_path, "use_ema=False")
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "out", use_ema=False), golden("model_dit"))


def test_averaged_weights_that_do_not_fit_are_refused(tmp_path):
    weights = golden("model_dit")
    shadow = parameters(weights)
    short = write(tmp_path / "short.ckpt", weights, shadow[:-1])
    assert_refused(
        short, tmp_path, rf"has {len(shadow) - 1} averaged.*{len(shadow)} \(MDLMForMaskedLM\).*use_ema=False"
    )
    shuffled = write(tmp_path / "shuffled.ckpt", weights, shadow[::-1])
    assert_refused(shuffled, tmp_path, "use_ema=False")
    assert_holds(convert_lightning_checkpoint(shuffled, tmp_path / "out", use_ema=False), weights)


# ---------------------------------------------------------------------------------------------- files that do not fit


def test_missing_and_extra_keys_are_listed_under_the_names_of_the_file(tmp_path):
    weights = edlm_weights()
    del weights["backbone.backbone.blocks.1.attn_out.weight"]
    weights["backbone.backbone.blocks.0.rogue"] = torch.zeros(1)
    missing = r"Missing \(1\): backbone\.backbone\.blocks\.1\.attn_out\.weight\."
    extra = r"Left over \(1\): backbone\.backbone\.blocks\.0\.rogue\."
    assert_refused(write(tmp_path / "edlm.ckpt", weights), tmp_path, f"{missing} {extra}")


@pytest.mark.parametrize("name", ["model_dit", "model_ar"])
def test_every_key_is_needed(name, tmp_path):
    names = [key for key in golden(name) if not key.endswith("inv_freq")]
    for index, key in enumerate(names):
        weights = golden(name)
        del weights[key]
        assert_refused(write(tmp_path / f"{index}.ckpt", weights), tmp_path, rf"Missing \(\d+\): .*{key}")


def test_keys_of_no_network_are_refused_but_the_published_extras_are_not(tmp_path):
    weights = golden("model_dit")
    extras = {"noise.sigma_min": torch.tensor(1e-3), "noise.sigma_max": torch.tensor(7.0)}
    assert_holds(convert_lightning_checkpoint(write(tmp_path / "a.ckpt", weights | extras), tmp_path / "a"), weights)
    for extra in ({"teacher.weight": torch.zeros(2)}, {"noise.net.weight": torch.zeros(2, 2)}):
        path = write(tmp_path / "b.ckpt", weights | extra)
        assert_refused(path, tmp_path, r"Left over \(1\): " + next(iter(extra)))


def test_shapes_that_contradict_each_other_are_listed(tmp_path):
    weights = golden("model_dit") | {"backbone.blocks.2.mlp.0.bias": torch.zeros(255)}
    message = r"backbone\.blocks\.2\.mlp\.0\.bias is \(255,\), not \(256,\)"
    assert_refused(write(tmp_path / "mdlm.ckpt", weights), tmp_path, message)


def test_number_of_heads_is_asked_for_only_where_the_file_does_not_tell(tmp_path):
    weights = golden("model_dit")
    path = write(tmp_path / "with.ckpt", weights)
    assert_refused(path, tmp_path, "n_heads is 8.*those of 4 heads", n_heads=8)
    del weights["backbone.rotary_emb.inv_freq"]
    path = write(tmp_path / "without.ckpt", weights)
    assert_refused(path, tmp_path, "Pass n_heads")
    assert convert_lightning_checkpoint(path, tmp_path / "out", n_heads=4).config.n_heads == 4


def test_other_rotary_frequencies_are_refused(tmp_path):
    frequencies = 500.0 ** (-torch.arange(8) / 8)
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit") | {"backbone.rotary_emb.inv_freq": frequencies})
    assert_refused(path, tmp_path, "published frequencies")


@pytest.mark.parametrize("count", [12, 64])
def test_rotary_frequencies_that_do_not_divide_the_width_are_refused(count, tmp_path):
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit") | {"backbone.rotary_emb.inv_freq": frequencies})
    assert_refused(path, tmp_path, f"has {count} entries.*width of 64 is no multiple")


def test_time_conditioning_of_an_autoregressive_model_is_refused(tmp_path):
    path = write(tmp_path / "ar.ckpt", golden("model_ar"))
    assert_refused(path, tmp_path, "time_conditioning=True, but", time_conditioning=True)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    assert_refused(garbage, tmp_path, "cannot be read")
    torch.save(golden("model_dit"), tmp_path / "bare.ckpt")
    assert_refused(tmp_path / "bare.ckpt", tmp_path, "no 'state_dict' of tensors")
    torch.save({"state_dict": {"backbone.x": "text"}}, tmp_path / "text.ckpt")
    assert_refused(tmp_path / "text.ckpt", tmp_path, "no 'state_dict' of tensors")
    with pytest.raises(FileNotFoundError, match="absent.ckpt"):
        convert_lightning_checkpoint(tmp_path / "absent.ckpt", tmp_path / "out")


def test_a_key_that_is_no_text_is_refused(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit") | {7: torch.zeros(2)})
    assert_refused(path, tmp_path, "no 'state_dict' of tensors.*a key of type int")


def test_shapes_of_which_the_file_holds_only_a_part_are_refused(tmp_path):
    weights = golden("model_dit")
    for index, shape in enumerate([(10**9, 10**4), (33, 64)]):
        path = write(
            tmp_path / f"{index}.ckpt", weights | {"backbone.vocab_embed.embedding": torch.zeros(1).expand(shape)}
        )
        assert_refused(path, tmp_path, r"vocab_embed\.embedding.*holds completely.*has 1 numbers")


def test_sizes_are_compared_before_a_model_takes_memory(tmp_path):
    wide = {"backbone.vocab_embed.embedding": torch.zeros(1, 10**6)}  # its blocks would take 12 * 10^12 numbers each
    weights = golden("model_dit") | wide
    assert_refused(write(tmp_path / "mdlm.ckpt", weights), tmp_path, "contradict each other")


@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.long,
        torch.Tensor.bool,
        torch.Tensor.cfloat,
        lambda x: x[:0],
        torch.Tensor.numpy,
    ],
)
def test_weights_that_are_no_dense_floating_point_tensors_are_refused(change, tmp_path):
    name = "backbone.blocks.0.attn_out.weight"
    weights = golden("model_dit")
    path = write(tmp_path / "mdlm.ckpt", weights | {name: change(weights[name])})
    assert_refused(path, tmp_path, name)


def test_layouts_and_precisions_of_dense_tensors_do_not_matter(tmp_path):
    weights = golden("model_dit")
    exact = {name: x.bfloat16() for name, x in weights.items()}
    block = torch.stack([exact["backbone.blocks.0.attn_out.weight"].t().double(), torch.zeros(64, 64).double()])
    path = write(tmp_path / "mdlm.ckpt", exact | {"backbone.blocks.0.attn_out.weight": block[0].t()})
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "out"), {name: x.float() for name, x in exact.items()})


def repack(path, method=zipfile.ZIP_STORED, **changed):
    """The same archive written by another program, some records changed."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in records.items():
            new.writestr(name, changed.get(name.split("/")[1], content))


def test_archives_of_other_programs_are_read_if_they_are_plain(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    repack(path, zipfile.ZIP_DEFLATED)
    assert_refused(path, tmp_path, "it is compressed")
    repack(path, byteorder=b"big")
    assert_refused(path, tmp_path, "not little-endian")
    repack(path, byteorder=b"little")
    assert_holds(convert_lightning_checkpoint(path, tmp_path / "out"), golden("model_dit"))


def test_damaged_files_are_refused(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"state_dict", b"state-dict", 1))
    assert_refused(path, tmp_path, "cannot be read.*CRC")
    path.write_bytes(content[:-100])
    assert_refused(path, tmp_path, "cannot be read")


# ------------------------------------------------------------------------------------------------------- the output


def test_output_folder_must_be_new_or_empty(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        convert_lightning_checkpoint(path, full)
    with pytest.raises(ValueError, match="not an empty folder"):
        convert_lightning_checkpoint(path, full / "notes.txt")
    assert [x.name for x in full.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    convert_lightning_checkpoint(path, tmp_path / "empty")
    convert_lightning_checkpoint(path, tmp_path / "deep/er")
    assert (tmp_path / "empty/model.safetensors").exists() and (tmp_path / "deep/er/config.json").exists()
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".")]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self, folder, **kwargs):
        os.makedirs(folder)
        raise OSError("disk full")

    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    monkeypatch.setattr(MDLMForMaskedLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_lightning_checkpoint(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------- nothing in the file runs


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
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"), hyper_parameters={"config": [Trap(function, code)]})
    if function is os.system:  # torch blocks this module whatever stands for it
        assert_refused(path, tmp_path, "^(?!.*weights_only).*cannot be read without trusting it.*posix.system")
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
    write(tmp_path / "c.ckpt", golden("model_dit"), averaged=[trap] * len(parameters(golden("model_dit"))))
    torch.save(trap, tmp_path / "d.ckpt")
    for name, message in [("a", "state_dict"), ("b", "state_dict"), ("c", "use_ema=False"), ("d", "state_dict")]:
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
    torch.save({"state_dict": golden("model_dit"), "hyper_parameters": objects}, path, pickle_protocol=protocol)
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
