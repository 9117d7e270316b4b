"""Networks on a device: recorded logits, energies of candidates, and parts on two devices."""

import pytest
import torch
from device_models import MASK, MODELS, NOTHING, RAGGED, TEXTS, both, check_same_tokens
from published import golden, write_checkpoint

import edlm_hf.evaluation as evaluation
from edlm_hf import EDLMEnergyModel, MDLMForCausalLM, MDLMForMaskedLM


@pytest.mark.parametrize("name", ["ar", "gpt2", "coar", "nce", "revealed"])
def test_denoiser_and_energy_may_stand_on_two_devices(accelerator, rules, name):
    if torch.get_device_module(accelerator.DEVICE).device_count() < 2:
        pytest.skip("There is one device")
    on_cpu, on_device = MODELS[name](), MODELS[name]()
    accelerator.move(on_device.denoiser, 0)
    accelerator.move(on_device.energy_model, 1)

    for prompt in (NOTHING, RAGGED):
        check_same_tokens(
            accelerator,
            on_cpu,
            on_device,
            max_denoising_steps=3,
            num_candidates=2,
            **prompt,
        )
    if on_cpu.config.energy_type != "nce":
        check_same_tokens(accelerator, on_cpu, on_device, sampler="speculative", **NOTHING)

    bounds = [
        evaluation.sampler_bound(model, TEXTS, num_steps=3, num_candidates=2, num_samples=2).value
        for model in (on_cpu, on_device)
    ]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)


@pytest.mark.parametrize("name", ["mdlm", "ar", "nce", "shared"])
def test_energies_of_candidates_on_the_cpu_are_those_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    noisy = TEXTS.clone()
    noisy[:, 2:4] = MASK
    candidates = TEXTS.unsqueeze(1).repeat(1, 3, 1)
    candidates[:, 1, 2] = 1

    expected = on_cpu.energy(candidates, noisy, torch.ones_like(noisy))
    for place in (accelerator.on_device, lambda x: x):
        energies = on_device.energy(place(candidates), place(noisy), place(torch.ones_like(noisy)))
        assert energies.device.type == accelerator.DEVICE
        torch.testing.assert_close(energies.cpu().float(), expected.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_published_networks_have_their_recorded_logits_and_energies(accelerator, rules, tmp_path):
    data = golden("a_denoiser")
    denoiser = MDLMForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit"))
    logits = accelerator.move(denoiser)(accelerator.on_device(data["xt"])).logits.cpu()
    torch.testing.assert_close(logits, data["raw_logits_tc0"], rtol=0, atol=2e-4)

    data = golden("c_nce_energy")
    energy = EDLMEnergyModel.from_pretrained(write_checkpoint(tmp_path / "nce", "model_nce"))
    inputs = [accelerator.on_device(data[name]) for name in ("x0_data", "xt")]
    energies = accelerator.move(energy)(*inputs).energy.cpu()
    torch.testing.assert_close(energies, data["energy_data_tc0"], rtol=0, atol=1e-3)

    data = golden("b_ar_energy")
    causal = MDLMForCausalLM.from_pretrained(write_checkpoint(tmp_path / "ar", "model_ar", causal=True))
    logits = accelerator.move(causal)(accelerator.on_device(data["x"])).logits[..., :32].cpu()
    torch.testing.assert_close(logits.log_softmax(-1), data["ar_logprobs"][..., :32], rtol=0, atol=2e-4)
