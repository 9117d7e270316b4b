"""LoRA of the energy by PEFT: which layers it reaches, what it leaves alone, saving and switching."""

from concurrent.futures import ThreadPoolExecutor

import torch
from lora_energies import (
    BASE,
    NOISY,
    SHARED,
    adapted,
    energies,
    generate,
    logits,
    lora,
    new_base,
    trainable,
)
from peft import PeftModel, get_peft_model
from published import tiny_denoiser
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.training import LORA_MODULES_TO_SAVE
from edlm_hf.training.memory import sizes_in_bytes


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


def test_an_adapter_of_dora_is_loaded_by_peft_and_never_in_part(tmp_path):
    new_base("own").save_pretrained(tmp_path / "base")
    base = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    model = adapted(base, use_dora=True)
    model.save_pretrained(tmp_path / "adapter")
    expected = energies(model)

    base = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(energies(loaded), expected)

    # Versions of transformers that have another name for its magnitudes say what to do
    try:
        alone = AutoModelForMaskedLM.from_pretrained(tmp_path / "adapter")
    except ValueError as error:
        assert "of an adapter: load its base, then the adapter with PeftModel" in str(error)
    else:
        torch.testing.assert_close(energies(alone.eval()), expected)


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
