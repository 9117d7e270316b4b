"""LoRA adapters of the energy are merged into plain models, and never into the denoiser."""

import pytest
import torch
from bare import BarePython
from lora_energies import (
    BASE,
    CLEAN,
    NOISY,
    SHARED,
    adapted,
    energies,
    generate,
    logits,
    lora,
    new_base,
    scatter,
    trainable,
)
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from published import tiny_denoiser
from safetensors.torch import load_file
from torch import nn
from training import same
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.training import LORA_TARGET_MODULES, merge_lora


@BASE
def test_merged_model_is_plain_and_has_the_same_energies(tmp_path, base):
    model = adapted(new_base(base), lora_alpha=5)
    expected, tokens = energies(model), generate(model, NOISY)
    merged = merge_lora(model)
    assert type(merged) is EDLMForMaskedDiffusion
    assert merged.config.energy_adapter_rank == {"own": 0, "shared": 2, "updated": 5}[base]

    merged.save_pretrained(tmp_path)
    for plain in (merged, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        torch.testing.assert_close(energies(plain), expected, rtol=1e-5, atol=1e-5)
        assert same(plain.denoiser, tiny_denoiser()) and torch.equal(generate(plain, NOISY), tokens)
        assert set(plain.state_dict()) == set(load_file(tmp_path / "model.safetensors"))
        assert all(parameter.requires_grad for parameter in plain.parameters())


def test_merged_model_loads_without_the_package_and_without_peft(tmp_path):
    model = adapted(new_base("updated"))
    expected = energies(model)
    merge_lora(model).save_pretrained(tmp_path / "model")
    torch.save((CLEAN, NOISY, expected), tmp_path / "expected")
    script = """
import sys, torch, transformers
sys.modules["peft"] = None
clean, noisy, expected = torch.load(sys.argv[2])
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
with torch.no_grad():
    torch.testing.assert_close(model.energy(clean, noisy), expected, rtol=1e-5, atol=1e-5)
"""
    BarePython(tmp_path)(script, tmp_path / "model", tmp_path / "expected")


@SHARED
def test_merged_ranks_and_layers_may_differ(base):
    target = r"energy_model\.(blocks\.\d+\.(attn_qkv|mlp\.2)|vocab_proj)"
    model = adapted(
        new_base(base),
        target_modules=target,
        modules_to_save=["energy_head"],
        rank_pattern={"mlp.2": 4},
    )
    expected = energies(model)
    merged = merge_lora(model)
    assert merged.config.energy_adapter_rank == {"shared": 4, "updated": 7}[base]
    torch.testing.assert_close(energies(merged), expected, rtol=1e-5, atol=1e-5)


@SHARED
def test_nothing_can_be_merged_into_the_denoiser(base):
    model = adapted(new_base(base))
    before = energies(model)
    for merge in (
        model.merge_and_unload,
        lambda: model.merge_and_unload(safe_merge=True),
        model.merge_adapter,
        lambda: get_peft_model(new_base(base, model.denoiser), lora(init_lora_weights="pissa")),
        lambda: get_peft_model(new_base(base, model.denoiser), lora(init_lora_weights="olora")),
    ):
        with pytest.raises(ValueError, match="This weight is the denoiser's.*merge_lora"):
            merge()
        assert torch.equal(energies(model), before)
        assert torch.equal(logits(model), logits(tiny_denoiser()))

    linear = model.energy_model.get_submodule("blocks.0.attn_out").get_base_layer()
    for change in (
        nn.init.zeros_,
        lambda x: x.mul_(2),
        lambda x: x.data.fill_(0),
        lambda x: torch.neg(x, out=x),
    ):
        with pytest.raises(ValueError, match="This weight is the denoiser's"):
            change(linear.weight)
    assert torch.equal(linear.weight, model.denoiser.backbone.blocks[0].attn_out.weight)


ADAPTERS = {
    "LoRA": LoraConfig(target_modules=LORA_TARGET_MODULES),
    "LoHa": LoHaConfig(target_modules=LORA_TARGET_MODULES),
    "LoKr": LoKrConfig(target_modules=LORA_TARGET_MODULES),
    "IA3": IA3Config(target_modules=LORA_TARGET_MODULES, feedforward_modules=[]),
    "OFT": OFTConfig(r=0, oft_block_size=4, target_modules=LORA_TARGET_MODULES),
    "VeRA": VeraConfig(r=4, target_modules=LORA_TARGET_MODULES),
}


@SHARED
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_of_a_shared_energy_can_be_taken_away_again(tmp_path, base, name):
    model = new_base(base)
    bare = energies(model)
    with_adapter = get_peft_model(model, ADAPTERS[name]).eval()
    scatter(trainable(with_adapter).values(), seed=2)
    assert not torch.allclose(energies(model), bare)

    unloaded = with_adapter.unload()
    unloaded.save_pretrained(tmp_path)
    again = EDLMForMaskedDiffusion.from_pretrained(tmp_path)
    assert again.state_dict().keys() == new_base(base).state_dict().keys()
    for plain in (unloaded, again):
        torch.testing.assert_close(energies(plain), bare)


@SHARED
def test_the_weights_that_a_shared_energy_reads_cannot_be_replaced(base):
    layer = new_base(base).energy_model.blocks[0].mlp["0"]
    layer.weight = layer.weight
    layer.bias = layer.bias
    for name in ("weight", "bias"):
        with pytest.raises(ValueError, match="the denoiser's, which the energy only reads"):
            setattr(layer, name, getattr(layer, name).clone())


def test_adapters_that_cannot_be_merged_are_refused_and_kept():
    for changes, words in (
        ({"use_dora": True}, "no plain LoRA.*use_dora"),
        ({"target_modules": r".*(blocks\.0\.attn_out)"}, "denoiser.backbone.blocks.0.attn_out, whose weights"),
    ):
        model = adapted(new_base("shared"), **changes)
        before = energies(model)
        with pytest.raises(ValueError, match=words):
            merge_lora(model)
        assert torch.equal(energies(model), before)
