"""Lightning checkpoints that do not fit, that are damaged, or that hold something else are refused."""

import zipfile

import pytest
import torch
from lightning_files import assert_holds, assert_refused, edlm_weights, write
from published import golden

from edlm_hf.conversion import convert_lightning_checkpoint


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
        assert_refused(
            write(tmp_path / f"{index}.ckpt", weights),
            tmp_path,
            rf"Missing \(\d+\): .*{key}",
        )


def test_keys_of_no_network_are_refused_but_the_published_extras_are_not(tmp_path):
    weights = golden("model_dit")
    extras = {"noise.sigma_min": torch.tensor(1e-3), "noise.sigma_max": torch.tensor(7.0)}
    assert_holds(
        convert_lightning_checkpoint(write(tmp_path / "a.ckpt", weights | extras), tmp_path / "a"),
        weights,
    )
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
    path = write(
        tmp_path / "mdlm.ckpt",
        golden("model_dit") | {"backbone.rotary_emb.inv_freq": frequencies},
    )
    assert_refused(path, tmp_path, "published frequencies")


@pytest.mark.parametrize("count", [12, 64])
def test_rotary_frequencies_that_do_not_divide_the_width_are_refused(count, tmp_path):
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    path = write(
        tmp_path / "mdlm.ckpt",
        golden("model_dit") | {"backbone.rotary_emb.inv_freq": frequencies},
    )
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
    # Blocks of this width would take 12 * 10^12 numbers each
    wide = {"backbone.vocab_embed.embedding": torch.zeros(1, 10**6)}
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
    block = torch.stack(
        [
            exact["backbone.blocks.0.attn_out.weight"].t().double(),
            torch.zeros(64, 64).double(),
        ]
    )
    path = write(tmp_path / "mdlm.ckpt", exact | {"backbone.blocks.0.attn_out.weight": block[0].t()})
    assert_holds(
        convert_lightning_checkpoint(path, tmp_path / "out"),
        {name: x.float() for name, x in exact.items()},
    )


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
