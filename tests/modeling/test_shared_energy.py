"""A shared energy runs the denoiser's own modules as they are at the time: hooks, adapters, offloading and the like."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import dispatch_model
from checkpointing import switch_checkpointing
from peft import LoraConfig, get_peft_model
from published import randomised, tiny_config, tiny_denoiser
from torch import nn
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM

MASK = 12
NOISY = torch.full((2, 8), MASK)
NOISY[:, :3] = torch.tensor([[1, 2, 3], [4, 5, 6]])
CANDIDATES = NOISY[:, None].repeat(1, 3, 1)
CANDIDATES[:, :, 3:] = torch.randint(0, MASK, (2, 3, 5), generator=torch.Generator().manual_seed(0))


def shared(rank: int = 2, **changes) -> EDLMForMaskedDiffusion:
    choices = {"energy_type": "nce", "energy_weights": "shared", "energy_adapter_rank": rank}
    return randomised(EDLMForMaskedDiffusion.from_components(tiny_denoiser(**changes), **choices))


def energies(model) -> torch.Tensor:
    with torch.no_grad():
        return model.energy(CANDIDATES, NOISY)


@pytest.mark.parametrize("place", ["hooks on every module", "denoiser on disk"])
def test_updates_act_wherever_the_trunk_lies(tmp_path, place):
    model = shared()
    wanted = energies(model)
    model.save_pretrained(tmp_path / "model")

    if place == "denoiser on disk":
        devices = {"denoiser": "disk", "energy_model": "cpu"}
        found = AutoModelForMaskedLM.from_pretrained(
            tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offload"
        )
    else:
        devices = {"denoiser": "cpu", "energy_model": "cpu"}
        found = dispatch_model(
            AutoModelForMaskedLM.from_pretrained(tmp_path / "model"),
            devices,
            force_hooks=True,
        )

    torch.testing.assert_close(energies(found), wanted)

    without = copy.deepcopy(model)
    for layer in without.energy_model.modules():
        if getattr(layer, "up", None) is not None:
            nn.init.zeros_(layer.up)

    assert not torch.allclose(energies(without), wanted)


def test_hooks_of_the_trunk_run_with_the_energy():
    model, called = shared(), []
    energies(model)
    model.denoiser.backbone.blocks[0].norm1.register_forward_hook(lambda *args: called.append("norm"))
    model.denoiser.backbone.blocks[1].register_forward_hook(lambda *args: called.append("block"))
    model.denoiser.backbone.blocks[1].mlp[0].register_forward_hook(lambda *args: called.append("linear"))
    energies(model)
    assert sorted(called) == ["block", "linear", "norm"]


def test_a_module_that_is_replaced_after_an_energy_is_the_one_that_runs():
    model, other = shared(), shared()
    before = energies(model)
    for one in (model, other):
        nn.init.constant_(one.denoiser.backbone.blocks[0].norm1.weight, 0.5)
    replaced = copy.deepcopy(other.denoiser.backbone.blocks[1].attn_qkv)
    nn.init.constant_(replaced.weight, 0.1)
    model.denoiser.backbone.blocks[1].attn_qkv = replaced
    nn.init.constant_(other.denoiser.backbone.blocks[1].attn_qkv.weight, 0.1)
    assert not torch.allclose(energies(model), before)
    torch.testing.assert_close(energies(model), energies(other))


def test_an_adapter_of_the_denoiser_reaches_an_energy_computed_before():
    model = shared(rank=0)
    before = energies(model)
    get_peft_model(
        model,
        LoraConfig(r=2, target_modules=r"denoiser\..*attn_qkv", init_lora_weights="gaussian"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.3)

    after = energies(model)
    assert not torch.allclose(after, before)

    own = [module for module in model.denoiser.modules() if hasattr(module, "lora_A")]
    for layer in own:
        layer.merge()
    torch.testing.assert_close(energies(model), after, rtol=1e-4, atol=1e-5)


def saved_numbers(model) -> int:
    count = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: count.append(x.numel()) or x, lambda x: x):
        model(candidate_ids=CANDIDATES, input_ids=NOISY)
    return sum(count)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_is_what_it_was_set_to_last(rank):
    model = shared(rank).train()
    model.denoiser.requires_grad_(False)
    plain = saved_numbers(model)
    switch_checkpointing(model, True)
    assert saved_numbers(model) < 0.7 * plain
    switch_checkpointing(model, False)
    assert saved_numbers(model) == plain


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointed_gradients_are_those_of_the_energy_and_not_of_the_denoiser(rank):
    gradients = []
    for checkpointing in (False, True):
        model = shared(rank, dropout=0.3).train()
        model.denoiser.requires_grad_(False).eval()
        if checkpointing:
            switch_checkpointing(model, True)
        torch.manual_seed(5)
        model(candidate_ids=CANDIDATES, input_ids=NOISY).energy.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})

    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_energy_has_a_mode_of_its_own():
    model = shared(dropout=0.5)
    model.energy_model.train()
    model.denoiser.eval()
    denoised = model.denoiser(NOISY).logits
    one, two = (model.energy_model(CANDIDATES, NOISY).energy for _ in range(2))
    assert not torch.equal(one, two) and torch.equal(model.denoiser(NOISY).logits, denoised)

    model.train()
    model.energy_model.eval()
    assert torch.equal(model.energy_model(CANDIDATES, NOISY).energy, model.energy_model(CANDIDATES, NOISY).energy)


def test_denoiser_and_energy_run_in_threads_side_by_side():
    model = shared()
    wanted, logits = energies(model), model.denoiser(NOISY).logits.detach()

    def work(number: int) -> bool:
        with torch.no_grad():
            if number % 2:
                return torch.equal(model.denoiser(NOISY).logits, logits)
            return torch.equal(model.energy_model(CANDIDATES, NOISY).energy, wanted)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(64)))


def test_a_copy_reads_the_trunk_of_the_copy():
    model = shared()
    other = copy.deepcopy(model)
    assert other.energy_model.trunk is other.denoiser.backbone
    nn.init.zeros_(model.denoiser.backbone.blocks[0].norm1.weight)
    assert not torch.allclose(energies(model), energies(other))
    assert set(model.state_dict()) == set(shared().state_dict())
    assert isinstance(MDLMForMaskedLM(tiny_config()).backbone.blocks[0].mlp, nn.Sequential)


def with_adapters() -> EDLMForMaskedDiffusion:
    model = shared(rank=0)
    targets = r"energy_model\..*attn_qkv|denoiser\..*attn_out"
    get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
    return model


COMPILED = {
    "no updates": lambda: shared(rank=0),
    "low-rank updates": lambda: shared(time_conditioning=True),
    "adapters": with_adapters,
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_shared_energy_is_one_graph_for_the_compiler(name):
    model = COMPILED[name]()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    real = torch.ones_like(NOISY)
    real[1, 6:] = 0
    inputs = {"input_ids": NOISY, "attention_mask": real, "timesteps": torch.tensor([0.3, 0.8])}

    found = []
    for network in (model, compiled):
        model.zero_grad()
        energy = network(candidate_ids=CANDIDATES, **inputs).energy
        energy.square().sum().backward()
        gradients = [parameter.grad for parameter in model.energy_model.parameters() if parameter.grad is not None]
        found.append([energy.detach(), *gradients])

    torch.testing.assert_close(found[1], found[0])
