"""Checkpoints in Lightning's layout, and whether a model holds their weights."""

import pytest
import torch
from published import golden

from edlm_hf.conversion import convert_lightning_checkpoint


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
    content = {
        "epoch": 1,
        "global_step": 3,
        "state_dict": state_dict,
        "optimizer_states": [{"state": {}}],
    } | others
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
