"""Checkpoint files whose writer means harm: small ones that would take much memory or time, or steer a terminal."""

import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from published import golden

from edlm_hf import MDLMConfig, MDLMForCausalLM, lightning, plain_archive
from edlm_hf.conversion import convert_lightning_checkpoint
from edlm_hf.inert_pickle import CheckpointUnpickler, InertObject
from edlm_hf.lightning import Checkpoint

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x10tQK\x00%s%s\x89NtR"


def refused(path: Path, message: str, most_bytes: int = 2**24) -> str:
    """The message with which a conversion fails, within some seconds and a little memory."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            convert_lightning_checkpoint(path, path.parent / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < most_bytes, f"{peak:,} bytes"
    assert time.monotonic() - began < 20
    assert not (path.parent / "out").exists()
    return str(caught.value)


def archive(path: Path, pickled: bytes, **records: bytes) -> Path:
    """A file in the layout of `torch.save` with the given pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", bytes(64))
        for name, content in records.items():
            file.writestr(f"a/{name}", content)
    return path


def with_state_dict(value: bytes) -> bytes:
    return b"\x80\x02}X\x0a\x00\x00\x00state_dict" + value + b"s."


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("record", ["data.pkl", "byteorder", "data/0", "version"])
def test_a_compressed_record_is_not_unpacked(tmp_path, record, method):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"a/{record}", bytes(2**26), method)
        if record != "data.pkl":
            file.writestr("a/data.pkl", b"N.")
    assert path.stat().st_size < 2**17
    refused(path, f"{record}' is not plain: it is compressed|{record} is not plain: it is compressed")


def change_directory(path: Path, name: str, offset: int, value: bytes) -> None:
    """Overwrite a field of a record's entry in the directory."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(name.encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + offset : entry + offset + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        # The record begins where another one is
        (42, struct.pack("<L", 0), "begins inside another|not where the directory says"),
        (42, struct.pack("<L", 7), "not where the directory says|begins inside another"),
        (20, struct.pack("<LL", 2**30, 2**30), "not where the directory says|begins inside another"),
        (10, struct.pack("<H", 8), "compressed"),
        (8, struct.pack("<H", 1), "encrypted"),
    ],
)
def test_a_directory_that_lies_is_not_believed(tmp_path, offset, value, message):
    path = archive(tmp_path / "lies.ckpt", with_state_dict(b"}"))
    change_directory(path, "a/data/0", offset, value)
    refused(path, message)


def test_records_that_share_their_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "shared.ckpt", with_state_dict(b"}"), **{"data/1": bytes(64)})
    inside = path.read_bytes().index(b"a/data/0") - 30
    change_directory(path, "a/data/1", 42, struct.pack("<L", inside))
    refused(path, "begins inside another")


def test_two_records_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path / "twice.ckpt", with_state_dict(b"}"))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/data/0", bytes(4))
    refused(path, "two records a/data/0")


def test_directory_and_pickle_have_a_largest_size(tmp_path, monkeypatch):
    path = archive(tmp_path / "long.ckpt", with_state_dict(b"]" * 3000 + b"0" * 2999))
    monkeypatch.setattr(lightning, "LARGEST_PICKLE", 2000)
    monkeypatch.setattr(plain_archive, "LARGEST_DIRECTORY", 2000)
    refused(path, "pickle takes 60.. bytes, but at most 2000")
    with zipfile.ZipFile(path, "a") as file:
        for i in range(100):
            file.writestr(f"a/data/{i + 1}", b"")
    refused(path, "directory takes .* bytes, but at most 2000")


def numbers_of_one_hash(count: int) -> bytes:
    """Keys whose hashes are all 0: a dictionary compares each with all before it."""
    return b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, count))


def nested(depth: int) -> bytes:
    """Tuples of two, in each other: 2**depth leaves, as many hashes and as long a text."""
    return b")" + b"2\x86" * depth


HOSTILE = {
    "a dictionary of numbers with one hash": b"}(" + numbers_of_one_hash(60_000) + b"u",
    "a dictionary made of numbers with one hash": b"(" + numbers_of_one_hash(60_000) + b"d",
    "a set of numbers with one hash": b"\x8f(" + numbers_of_one_hash(60_000) + b"\x90",
    "a frozen set of numbers with one hash": b"(" + numbers_of_one_hash(60_000) + b"\x91",
    "tuples in tuples as a key": b"}" + nested(64) + b"Ns",
    "tuples in tuples in a set": b"\x8f(" + nested(64) + b"\x90",
    "tuples in tuples as a shape": b"}U\x01x" + TENSOR % (nested(64), b")") + b"s",
    "tuples in tuples in a shape": b"}U\x01x" + TENSOR % (nested(64) + b"\x85", b")") + b"s",
    "tuples in tuples as strides": b"}U\x01x" + TENSOR % (b"K\x01\x85", nested(64)) + b"s",
    "tuples in tuples as the name of a storage": b"}U\x01x"
    + (TENSOR % (b"K\x01\x85", b"K\x01\x85")).replace(b"U\x010", nested(64))
    + b"s",
    "tuples in tuples as the name of a class": nested(64) + b"U\x01a\x93",
    "a long number as the key, again and again": b"}\x8b\x00\x00\x04\x00"
    + b"\x7f" * 2**18
    + b"q\x000("
    + b"h\x00N" * 50_000
    + b"u",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "a shape of many sizes": b"}U\x01x" + TENSOR % (b"(" + b"K\x01" * 50_000 + b"t", b")") + b"s",
}


@pytest.mark.parametrize("opcodes", HOSTILE.values(), ids=HOSTILE)
def test_pickles_cost_no_more_than_their_length(tmp_path, opcodes):
    path = archive(tmp_path / "slow.ckpt", with_state_dict(opcodes))
    assert len(refused(path, "slow.ckpt", 2**26)) < 2000


def test_pickles_of_every_opcode_become_plain_values():
    items = b"(K\x01U\x01a\x8c\x01b\x88\x89NG?\xf8\x00\x00\x00\x00\x00\x00\x8a\x01\x05C\x01c"
    assert CheckpointUnpickler(items + b"l.").load() == [1, "a", "b", True, False, None, 1.5, 5, b"c"]
    assert CheckpointUnpickler(b"(K\x01K\x02t\x940K\x03\x94h\x00\x86.").load() == (3, (1, 2))
    found = CheckpointUnpickler(b"}U\x01acos.path\njoin\n)RK\x01U\x01b\x86bs.").load()
    assert found == {"a": {}} and type(found["a"]) is InertObject


def small_checkpoint(path: Path, blocks: int, width: int, shift: int) -> Path:
    """All weights of a model of many blocks lie in one storage, on top of each other or shifted by a few numbers."""
    config = MDLMConfig(
        vocab_size=28,
        hidden_dim=width,
        n_heads=2,
        n_blocks=blocks,
        model_length=16,
        causal=True,
    )
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in MDLMForCausalLM(config).state_dict().items()}
    numbers = torch.zeros(4 * width**2 + shift * len(shapes))
    weights = {
        name: numbers[shift * i : shift * i + shape.numel()].view(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    torch.save({"state_dict": weights | {"backbone.rotary_emb.inv_freq": frequencies}}, path)
    return path


@pytest.mark.parametrize("shift", [0, 4])
def test_weights_that_lie_on_top_of_each_other_are_refused(tmp_path, shift):
    path = small_checkpoint(tmp_path / "small.ckpt", blocks=12, width=64, shift=shift)
    assert path.stat().st_size < 2**17
    refused(path, "lie on top of each other.*clone", 2**25)


def test_averaged_weights_that_lie_on_top_of_each_other_are_refused(tmp_path):
    numbers = torch.zeros(2**16)
    content = {"state_dict": golden("model_dit"), "ema": {"shadow_params": [numbers] * 200}}
    torch.save(content, tmp_path / "averaged.ckpt")
    refused(tmp_path / "averaged.ckpt", "lie on top of each other.*use_ema=False", 2**25)


def test_an_energy_under_two_names_is_no_harm(tmp_path):
    energy = golden("model_nce")
    both = {f"backbone.{name}": x for name, x in (golden("model_dit") | energy).items()} | energy
    torch.save({"state_dict": both}, tmp_path / "edlm.ckpt")
    assert convert_lightning_checkpoint(tmp_path / "edlm.ckpt", tmp_path / "out").config.energy_type == "nce"


def test_blocks_that_are_only_named_take_no_memory(tmp_path):
    weights = golden("model_dit")
    number = torch.zeros(1)
    weights |= {f"backbone.blocks.{i}.norm1.weight": number for i in range(3, 3000)}
    torch.save({"state_dict": weights}, tmp_path / "blocks.ckpt")
    assert len(refused(tmp_path / "blocks.ckpt", r"Missing \(\d+\): .*, \.\.\.", 2**26)) < 20_000


def test_names_of_a_file_do_not_steer_a_terminal(tmp_path):
    name = "backbone.\x1b]0;title\x07\x1b[2J\u202e"
    number = torch.zeros(1)
    torch.save({"state_dict": golden("model_dit") | {name: number}}, tmp_path / "a.ckpt")
    torch.save({"state_dict": golden("model_dit") | {name: "text"}}, tmp_path / "b.ckpt")
    torch.save({"state_dict": golden("model_dit") | {name: number.long()}}, tmp_path / "c.ckpt")
    for file in "abc":
        message = refused(tmp_path / f"{file}.ckpt", "x1b", 2**25)
        assert message.isprintable() and "u202e" in message

    archive(tmp_path / "d.ckpt", with_state_dict(b"cos\n\x1b[2J\n"))
    assert refused(tmp_path / "d.ckpt", "os.'.x1b").isprintable()


def test_what_a_file_holds_is_read_without_a_copy(tmp_path):
    torch.save({"state_dict": golden("model_dit")}, tmp_path / "model.ckpt")
    weights = Checkpoint(tmp_path / "model.ckpt").weights()
    assert all(torch.equal(weights[name], x) for name, x in golden("model_dit").items())
