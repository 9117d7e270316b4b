"""Energies that share the weights of their denoiser leave it as it is and add little to it."""

from concurrent.futures import ThreadPoolExecutor

import torch
from energy_training import WAY, new_energy
from published import tiny_denoiser
from torch import nn

from edlm_hf import MDLMConfig, MDLMForMaskedLM
from edlm_hf.training.memory import sizes_in_bytes


def test_a_shared_energy_leaves_the_proposals_bare():
    model, denoiser = new_energy("lora"), tiny_denoiser()
    for parameter in model.energy_model.parameters():
        nn.init.normal_(parameter, std=0.5)
    noisy = torch.tensor([[3, 12, 5, 0, 12, 7]])

    with torch.no_grad():
        energy = model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy)
        assert torch.equal(model(noisy).logits, denoiser(noisy).logits)
        model.energy_model.get_submodule("blocks.1.mlp.2").up.zero_()
        assert (model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy) - energy).abs() > 1e-4
        model.denoiser.backbone.blocks[0].mlp[0].weight.mul_(2)  # one set of weights
        assert (model.energy(noisy.masked_fill(noisy == 12, 4).unsqueeze(1), noisy) - energy).abs() > 1e-3


def test_calls_of_a_shared_energy_from_several_threads_do_not_meet():
    model = new_energy("lora")
    for parameter in model.energy_model.parameters():
        nn.init.normal_(parameter, std=0.5)
    noisy = torch.tensor([[3, 12, 5, 0, 12, 7]])
    candidates = noisy.masked_fill(noisy == 12, 4).unsqueeze(1)
    with torch.no_grad():
        expected = model.energy(candidates, noisy), model(noisy).logits

    @torch.no_grad()
    def call(i):
        return model.energy(candidates, noisy) if i % 2 == 0 else model(noisy).logits

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected[i % 2]) for i, found in enumerate(pool.map(call, range(40))))


@WAY
def test_shared_ways_add_a_tenth_of_the_denoiser_to_it_and_a_head(way):
    config = MDLMConfig(
        vocab_size=29,
        hidden_dim=128,
        cond_dim=16,
        n_blocks=6,
        n_heads=4,
        model_length=64,
    )
    sizes = sizes_in_bytes(new_energy(way, denoiser=MDLMForMaskedLM(config)))
    assert sizes["energy_overhead"] > 1.9 if way == "full" else sizes["energy_overhead"] <= 1.1
    assert sizes["head_bytes"] == 4 * (2 * 128 * 128 + 128 + 2 * (128 * 128 + 128) + 128)
    assert sizes["bytes"] <= (2.1 if way == "full" else 1.1) * sizes["denoiser_bytes"] + sizes["head_bytes"]
