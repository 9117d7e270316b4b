"""Models whose weights are offloaded compute what they do when loaded, also from nothing and in likelihoods."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from published import randomised, tiny_causal, tiny_denoiser

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import autoregressive_nll, nelbo, sampler_bound
from edlm_hf.modeling.network_facts import device_of

build = EDLMForMaskedDiffusion.from_components
TEXTS = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]


def make(kind: str):
    if kind == "denoiser":
        return tiny_denoiser()
    if kind == "ar":
        return build(tiny_denoiser(), tiny_causal(bos_token_id=10))
    choices = {"energy_weights": "shared", "energy_adapter_rank": 2} if kind == "shared" else {}
    return randomised(build(tiny_denoiser(), energy_type="nce", **choices))


def offload(model, how: str, folder):
    """Weights on the device `meta`, which hooks fill while a module runs."""
    if how == "cpu":
        cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        disk_offload(model, folder, execution_device=torch.device("cpu"))
    else:
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
    return model


def results(model) -> list[torch.Tensor]:
    options = {
        "max_denoising_steps": 3,
        "num_candidates": 3,
        "generator": torch.Generator().manual_seed(0),
    }
    drawn = model.generate(batch_size=2, max_length=6, **options)
    continued = model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, **options)
    bound = sampler_bound(model, TEXTS, num_steps=3, num_candidates=2, num_samples=2).value
    found = [
        drawn,
        continued,
        torch.tensor(bound),
        torch.tensor(nelbo(model, TEXTS, num_samples=2).value),
    ]
    if getattr(model.config, "energy_type", "none") == "ar":
        found.append(torch.tensor(autoregressive_nll(model.energy_model, [[10, 1, 2]]).value))
    return found


@pytest.mark.parametrize("how", ["cpu", "disk", "hooks"])
@pytest.mark.parametrize("kind", ["denoiser", "own", "shared", "ar"])
def test_everything_is_as_with_loaded_weights(tmp_path, kind, how):
    model = make(kind)
    wanted = results(model)
    offloaded = offload(copy.deepcopy(model), how, tmp_path)
    assert model.device == offloaded.device == torch.device("cpu")
    for one, other in zip(results(offloaded), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_energy_does_not_start_from_weights_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="weights are offloaded.*Put the energy on it first"):
        build(offload(tiny_denoiser(), "disk", tmp_path), energy_type="nce")


def test_the_device_of_a_network_without_weights_is_the_cpu_and_of_a_planned_one_meta():
    assert device_of(torch.nn.ReLU()) == torch.device("cpu")
    with torch.device("meta"):
        assert device_of(torch.nn.Linear(1, 1)).type == "meta"
