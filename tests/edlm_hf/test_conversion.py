"""Lightning checkpoints of the published code become our models: networks, averaged weights and the folder."""

import collections
import os

import pytest
import torch
from lightning_files import assert_holds, assert_refused, edlm_weights, noise, parameters, write
from published import golden
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.conversion import convert_lightning_checkpoint


def test_denoiser_is_converted_and_gives_the_published_logits(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    model = convert_lightning_checkpoint(path, tmp_path / "out", model_length=24)
    assert type(model) is MDLMForMaskedLM and not model.training
    assert_holds(model, golden("model_dit"))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert_holds(loaded, golden("model_dit"))
    reference = golden("a_denoiser")
    torch.testing.assert_close(
        loaded(reference["xt"]).logits,
        reference["raw_logits_tc0"],
        atol=2e-4,
        rtol=0,
    )


def test_sizes_come_from_shapes_and_the_rest_from_the_caller(tmp_path):
    path = write(tmp_path / "mdlm.ckpt", golden("model_dit"))
    options = {
        "model_length": 24,
        "mask_token_id": 5,
        "time_conditioning": True,
        "noise_schedule": "cosine",
    }
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
    assert_refused(
        write(tmp_path / "edlm.ckpt", weights),
        tmp_path,
        r"copies differ.*\(1\): vocab_proj.bias\.",
    )


def test_autoregressive_energy_says_how_to_get_there(tmp_path):
    energy = {name.replace("backbone.", "ebm."): x for name, x in golden("model_ar").items()}
    path = write(tmp_path / "edlm.ckpt", edlm_weights(energy=energy))
    assert_refused(path, tmp_path, "is no NCE network.*from_components")


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
    assert_holds(
        convert_lightning_checkpoint(path, tmp_path / "out", use_ema=False),
        golden("model_dit"),
    )


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
    assert (tmp_path / "empty/model.safetensors").exists()
    assert (tmp_path / "deep/er/config.json").exists()
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
