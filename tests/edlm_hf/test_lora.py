"""LoRA of the energy by PEFT: what it reaches, what it leaves alone, training, switching, merging, sharing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from bare import BarePython
from checkpointing import CHECKPOINTING
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from published import tiny_denoiser
from safetensors.torch import load_file
from torch import nn
from training import arguments, logged, random_blocks, same
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.training import (
    LORA_MODULES_TO_SAVE,
    LORA_TARGET_MODULES,
    EnergyArguments,
    EnergyTrainer,
    merge_lora,
)
from edlm_hf.training.memory import sizes_in_bytes

BASES = {
    "own": {},
    "shared": {"energy_weights": "shared"},
    "updated": {"energy_weights": "shared", "energy_adapter_rank": 3},
}
BASE = pytest.mark.parametrize("base", BASES)
SHARED = pytest.mark.parametrize("base", ["shared", "updated"])
NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor(
    [
        [[3, 1, 5, 0, 2, 7], [3, 9, 5, 0, 4, 7]],
        [[8, 2, 6, 11, 4, 9], [0, 2, 1, 10, 4, 9]],
    ]
)


def scatter(parameters, seed: int, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def new_base(base, denoiser=None) -> EDLMForMaskedDiffusion:
    """Nothing in it is zero."""
    model = EDLMForMaskedDiffusion.from_components(
        denoiser or tiny_denoiser(),
        energy_type="nce",
        **BASES[base],
    )
    scatter(model.energy_model.parameters(), seed=1)
    return model


def lora(**changes) -> LoraConfig:
    return LoraConfig(
        **({"r": 2, "target_modules": LORA_TARGET_MODULES, "modules_to_save": LORA_MODULES_TO_SAVE} | changes)
    )


def trainable(model) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted(model, seed=2, **changes) -> PeftModel:
    """The model with an adapter that is far from its start."""
    model = get_peft_model(model, lora(**changes)).eval()
    scatter(trainable(model).values(), seed)
    return model


@torch.no_grad()
def energies(model) -> torch.Tensor:
    return model.energy(CLEAN, NOISY)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(NOISY).logits


def generate(model, *args, **kwargs) -> torch.Tensor:
    return model.generate(*args, generator=torch.Generator().manual_seed(0), num_candidates=4, **kwargs)


# ------------------------------------------------------------------------------------------------------ what it reaches


@BASE
def test_adapters_are_on_every_linear_layer_of_the_energy_and_on_none_of_the_denoiser(base):
    model = new_base(base)
    before = [(name, type(module)) for name, module in model.denoiser.named_modules()]
    model = get_peft_model(model, lora())
    places = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    layers = ("attn_qkv", "attn_out", "mlp.0", "mlp.2")
    assert places == {f"base_model.model.energy_model.blocks.{i}.{layer}" for i in range(2) for layer in layers}
    assert before == [(name, type(module)) for name, module in model.denoiser.named_modules()]
    assert all(".energy_model." in name and ("lora_" in name or "modules_to_save" in name) for name in trainable(model))


@BASE
def test_adapter_changes_energies_and_leaves_the_proposals_bare(base):
    model = new_base(base)
    bare = energies(model)
    model = adapted(model)
    assert (energies(model) - bare).abs().min() > 1e-3
    assert torch.equal(logits(model), logits(tiny_denoiser()))
    with model.disable_adapter():
        assert torch.equal(energies(model), bare)

    for layer in ("attn_qkv", "attn_out", "mlp.0", "mlp.2"):  # each of them is run
        before = energies(model)
        with torch.no_grad():
            model.get_parameter(f"base_model.model.energy_model.blocks.1.{layer}.lora_B.default.weight").zero_()
        assert (energies(model) - before).abs().max() > 1e-4


@SHARED
def test_shared_energy_with_adapter_takes_a_tenth_of_the_denoiser_beside_it_and_the_heads(base):
    sizes = {"vocab_size": 29, "hidden_dim": 128, "cond_dim": 16, "n_blocks": 6, "n_heads": 4, "model_length": 64}
    model = get_peft_model(new_base(base, MDLMForMaskedLM(MDLMConfig(**sizes))), lora(r=4))
    assert 1 < sizes_in_bytes(model)["energy_overhead"] <= 1.1
    head = {id(x) for name, x in model.named_parameters() if any(part in name for part in LORA_MODULES_TO_SAVE)}
    tensors = [*model.parameters(), *model.buffers()]
    rest = sum(x.numel() * x.element_size() for x in tensors if id(x) not in head)
    assert rest <= 1.1 * sum(x.numel() * x.element_size() for x in model.denoiser.parameters())


def test_shared_energy_without_updates_stores_no_layer_of_its_blocks():
    assert {name.split(".")[0] for name in new_base("shared").energy_model.state_dict()} == {
        "vocab_proj", "output_layer", "energy_head",
    }  # fmt: skip


@SHARED
def test_weights_that_are_replaced_cast_or_changed_in_the_denoiser_are_those_of_the_energy(base):
    model = adapted(new_base(base))
    before = energies(model)
    linear = model.denoiser.backbone.blocks[0].mlp[0]
    linear.weight = nn.Parameter(2 * linear.weight.detach())
    assert (energies(model) - before).abs().max() > 1e-3

    with torch.no_grad():
        linear.weight.div_(2)
    assert torch.equal(energies(model), before)
    torch.testing.assert_close(energies(model.double()).float(), before)


@SHARED
def test_calls_from_several_threads_do_not_meet(base):
    model = adapted(new_base(base))
    expected = energies(model), logits(model)
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda i: (energies, logits)[i % 2](model), range(40))):
            assert torch.equal(found, expected[i % 2])


# ------------------------------------------------------------------------------------------------- saving and switching


@BASE
def test_adapter_alone_is_saved_and_loads_on_its_base(tmp_path, base):
    new_base(base).save_pretrained(tmp_path / "base")
    model = adapted(AutoModelForMaskedLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(x.numel() for x in stored.values()) == sum(p.numel() for p in trainable(model).values())
    assert not (tmp_path / "adapter" / "model.safetensors").exists()

    loaded = PeftModel.from_pretrained(
        AutoModelForMaskedLM.from_pretrained(tmp_path / "base"),
        tmp_path / "adapter",
    )
    # Transformers finds the base by itself
    native = AutoModelForMaskedLM.from_pretrained(tmp_path / "adapter")
    for other in (loaded, native):
        assert torch.equal(energies(other), energies(model))
        assert torch.equal(logits(other), logits(model))


def test_adapter_of_a_shared_energy_fits_a_copy_of_the_denoiser(tmp_path):
    model = adapted(new_base("shared"))
    model.save_pretrained(tmp_path)
    own = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), energy_type="nce")
    torch.testing.assert_close(energies(PeftModel.from_pretrained(own, tmp_path)), energies(model))


@BASE
def test_several_adapters_on_one_base_are_switched(tmp_path, base):
    for name, seed in (("first", 2), ("second", 3)):
        adapted(new_base(base), seed).save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(new_base(base), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    expected = {name: energies(adapted(new_base(base), seed)) for name, seed in (("first", 2), ("second", 3))}

    for name in ("first", "second", "first"):
        model.set_adapter(name)
        assert torch.equal(energies(model), expected[name])
        assert torch.equal(logits(model), logits(tiny_denoiser()))

    with model.disable_adapter():
        assert torch.equal(energies(model), energies(new_base(base)))


@BASE
def test_generate_fills_prompts_and_starts_from_nothing(base):
    model = adapted(new_base(base))
    options = {"max_length": 8, "batch_size": 16, "energy_temperature": 0.1}
    filled, free = generate(model, NOISY), generate(model, **options)
    assert torch.equal(filled[NOISY != 12], NOISY[NOISY != 12]) and (filled != 12).all()
    assert free.shape == (16, 8) and (free != 12).all()
    assert not torch.equal(free, generate(new_base(base), **options))  # the adapter weighs


# -------------------------------------------------------------------------------------------------------------- merging


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


# ------------------------------------------------------------------------------------------------------------- training


def adapter_trainer(folder, base, dropout=0.1, seed=0, **changes) -> EnergyTrainer:
    torch.manual_seed(seed)
    denoiser = tiny_denoiser(dropout=dropout)
    model = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce", **BASES[base])
    model = get_peft_model(model, lora(lora_dropout=dropout))
    options = {
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "num_negatives": 2,
    }
    options |= {"eval_num_candidates": 4, "eval_max_denoising_steps": 4}
    args = arguments(folder, EnergyArguments, **(options | changes))
    return EnergyTrainer(
        model,
        args,
        train_dataset=random_blocks(32),
        eval_dataset=random_blocks(8, seed=1),
    )


@BASE
def test_every_part_of_an_adapter_is_trained_and_nothing_else_changes(tmp_path, base):
    trainer = adapter_trainer(tmp_path, base, save_strategy="no")
    model = trainer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    modes = set()
    model.denoiser.register_forward_pre_hook(lambda *_: modes.update(m.training for m in model.denoiser.modules()))
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(trainable(model)) and changed
    assert modes == {False} and model.energy_model.training


@SHARED
def test_checkpointed_activations_change_no_loss(tmp_path, base):
    runs = [adapter_trainer(tmp_path, base, 0.0, max_steps=4, **{CHECKPOINTING: on}) for on in (False, True)]
    for trainer in runs:
        trainer.train()
    assert all(block.gradient_checkpointing for block in runs[1].model.energy_model.blocks)
    assert logged(runs[0]) == pytest.approx(logged(runs[1]), abs=1e-6)


@pytest.mark.parametrize("base", ["own", "updated"])
def test_a_resumed_run_continues_bitwise(tmp_path, base):
    whole, resumed = adapter_trainer(tmp_path, base), adapter_trainer(tmp_path, base)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed) == logged(whole) and len(logged(whole)) == 8
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name
    for first, second in zip(whole.average.shadow, resumed.average.shadow, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("base", ["own", "updated"])
def test_checkpoints_hold_the_averaged_adapter_that_is_evaluated(tmp_path, base):
    trainer = adapter_trainer(tmp_path, base)
    plain = trainer.model.get_base_model()
    trainer.train()
    trainer.save_model(tmp_path / "final")
    measured = trainer.evaluate()
    with trainer.averaged_weights():
        average = energies(trainer.model.eval())
    assert not torch.equal(energies(trainer.model), average)

    for folder in (tmp_path / "checkpoint-8", tmp_path / "final"):
        files = {path.name for path in folder.glob("*.safetensors")}
        assert files <= {"adapter_model.safetensors", "present_weights.safetensors"}
        assert "An adapter for this model" in (folder / "README.md").read_text()

        again = adapter_trainer(tmp_path / "again", base)
        scatter(trainable(again.model).values(), seed=9)
        loaded = PeftModel.from_pretrained(again.model.unload(), folder)
        assert torch.equal(energies(loaded), average)

        again = EnergyTrainer(loaded, again.args, eval_dataset=again.eval_dataset)
        found = again.evaluate()
        for name in ("eval_loss", "eval_sampler_bound", "eval_effective_sample_size"):
            assert found[name] == pytest.approx(measured[name], abs=1e-6)

    assert plain is trainer.model.get_base_model()
    assert np.isfinite(measured["eval_sampler_bound_change"])
