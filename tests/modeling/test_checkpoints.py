"""Saving and loading: byte-identical round trips, strict keys, sharding, precision, parts, and code that travels."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bare import BarePython
from published import (
    golden,
    randomised,
    tiny_causal,
    tiny_config,
    tiny_denoiser,
    tiny_gpt2,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
)

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM, MDLMModel

NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor([[3, 1, 5, 0, 2, 7], [8, 2, 6, 11, 4, 9]]).unsqueeze(1)


def composite(kind: str) -> EDLMForMaskedDiffusion:
    build, denoiser = EDLMForMaskedDiffusion.from_components, tiny_denoiser()
    if kind == "none":
        return build(denoiser)
    if kind == "nce":
        return build(denoiser, randomised(EDLMEnergyModel(tiny_config())))

    if kind == "shared":
        model = build(denoiser, energy_type="nce", energy_weights="shared")
        randomised(model.energy_model, seed=4)
        return model

    if kind == "gpt2":
        return build(denoiser, tiny_gpt2(), energy_type="coar")
    if kind == "bert":
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
        bert = randomised(BertForMaskedLM(BertConfig(vocab_size=13, **sizes)))
        return build(bert, tiny_causal(bos_token_id=0), energy_type="ar", mask_token_id=12)

    return build(denoiser, tiny_causal(bos_token_id=0), energy_type=kind)


KINDS = ["none", "ar", "coar", "nce", "shared", "gpt2", "bert"]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
def test_composite_loads_through_the_auto_classes(tmp_path, kind, auto_class):
    model = composite(kind)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is EDLMForMaskedDiffusion and not loaded.training
    torch.testing.assert_close(loaded(NOISY).logits, model(NOISY).logits)
    torch.testing.assert_close(loaded.energy(CLEAN, NOISY), model.energy(CLEAN, NOISY))


@pytest.mark.parametrize("kind", KINDS)
def test_second_save_equals_the_first(tmp_path, kind):
    composite(kind).save_pretrained(tmp_path / "first")
    AutoModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@torch.no_grad()
def test_published_layout_is_kept_by_a_round_trip(tmp_path):
    published = write_checkpoint(tmp_path / "published", "model_dit")
    AutoModelForMaskedLM.from_pretrained(published).save_pretrained(tmp_path / "saved")
    before, after = golden("model_dit"), load_file(tmp_path / "saved" / "model.safetensors")
    assert set(before) - set(after) == {"backbone.rotary_emb.inv_freq"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_shared_trunk_is_stored_once(tmp_path):
    model = composite("shared")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    own = sum(p.numel() for p in model.denoiser.parameters())
    head = sum(p.numel() for p in model.energy_model.parameters())
    assert sum(x.numel() for x in stored.values()) == own + head == model.num_parameters()
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.energy_model.trunk is loaded.denoiser.backbone


@torch.no_grad()
def test_sharded_checkpoint_loads(tmp_path):
    model = composite("nce")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.energy(CLEAN, NOISY), model.energy(CLEAN, NOISY))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ar", "nce"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_gives_single_precision_energies(tmp_path, kind, dtype):
    model = composite(kind)
    model.save_pretrained(tmp_path / "single")
    half = AutoModel.from_pretrained(tmp_path / "single", dtype=dtype)
    assert half(NOISY).logits.dtype == dtype

    energy = half.energy(CLEAN, NOISY)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(
        energy,
        model.energy(CLEAN, NOISY),
        rtol=0.05,
        atol=0.05 * NOISY.shape[1] ** 0.5,
    )
    if kind == "nce":
        assert half.energy_model.energy_head[0].weight.dtype == torch.float32

    half.save_pretrained(tmp_path / "half")
    again = AutoModel.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype
    assert torch.equal(again.energy(CLEAN, NOISY), energy)


def tampered(folder: Path, remove: str | None = None, add: str | None = None) -> Path:
    weights = load_file(folder / "model.safetensors")
    if remove is not None:
        del weights[remove]
    if add is not None:
        weights[add] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("nce", "energy_model.vocab_proj.weight"),
        ("nce", "denoiser.backbone.blocks.0.norm1.weight"),
        ("shared", "energy_model.energy_head.2.weight"),
        ("ar", "energy_model.backbone.output_layer.linear.bias"),
    ],
)
def test_missing_and_extra_weights_of_a_composite_are_errors(tmp_path, kind, missing):
    composite(kind).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=f"missing: {missing}"):
        AutoModel.from_pretrained(tampered(tmp_path / "a", remove=missing))
    with pytest.raises(ValueError, match="not part of the model: denoiser.extra"):
        AutoModel.from_pretrained(tampered(tmp_path / "b", add="denoiser.extra"))


@pytest.mark.parametrize(
    ("make", "auto_class"),
    [(tiny_denoiser, AutoModelForMaskedLM), (tiny_causal, AutoModelForCausalLM)],
)
def test_missing_and_extra_weights_of_a_part_are_errors(tmp_path, make, auto_class):
    make().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"missing: backbone.blocks.1.attn_out.weight"):
        auto_class.from_pretrained(tampered(tmp_path / "a", remove="backbone.blocks.1.attn_out.weight"))
    with pytest.raises(ValueError, match=r"not part of the model: backbone.surplus"):
        auto_class.from_pretrained(tampered(tmp_path / "b", add="backbone.surplus"))


def test_denoiser_weights_do_not_pass_for_a_causal_model(tmp_path):
    folder = write_checkpoint(tmp_path, "model_dit", causal=True)
    with pytest.raises(ValueError, match=r"not part of the model: backbone.blocks.0.adaLN_modulation"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_energy_checkpoint_is_strict(tmp_path):
    folder = tampered(write_checkpoint(tmp_path, "model_nce"), remove="ebm.energy_head.0.bias")
    with pytest.raises(ValueError, match=r"missing: energy_head.0.bias"):
        EDLMEnergyModel.from_pretrained(folder)


@torch.no_grad()
def test_trunk_and_head_load_from_each_other(tmp_path):
    model = tiny_denoiser()
    model.save_pretrained(tmp_path / "headed")
    trunk = AutoModel.from_pretrained(tmp_path / "headed")
    assert type(trunk) is MDLMModel
    torch.testing.assert_close(trunk(NOISY).last_hidden_state, model.backbone(NOISY).last_hidden_state)

    trunk.save_pretrained(tmp_path / "trunk")
    headed, info = MDLMForMaskedLM.from_pretrained(tmp_path / "trunk", output_loading_info=True)
    assert info["missing_keys"] == {"backbone.output_layer.linear.weight", "backbone.output_layer.linear.bias"}
    torch.testing.assert_close(
        headed.backbone(NOISY).last_hidden_state,
        model.backbone(NOISY).last_hidden_state,
    )


@torch.no_grad()
def test_parts_load_out_of_a_composite(tmp_path):
    model = composite("nce")
    model.save_pretrained(tmp_path / "nce")
    denoiser = MDLMForMaskedLM.from_pretrained(tmp_path / "nce")
    torch.testing.assert_close(denoiser(NOISY).logits, model(NOISY).logits)

    energy = EDLMEnergyModel.from_pretrained(tmp_path / "nce")
    torch.testing.assert_close(energy(CLEAN, NOISY).energy, model.energy(CLEAN, NOISY))
    with pytest.raises(ValueError, match="its energy_model is not a MDLMForCausalLM"):
        MDLMForCausalLM.from_pretrained(tmp_path / "nce")

    with_ar = composite("ar")
    with_ar.save_pretrained(tmp_path / "ar")
    causal = MDLMForCausalLM.from_pretrained(tmp_path / "ar")
    torch.testing.assert_close(causal(CLEAN[:, 0]).logits, with_ar.energy_model(CLEAN[:, 0]).logits)

    tampered(tmp_path / "ar", remove="denoiser.backbone.vocab_embed.embedding")
    with pytest.raises(ValueError, match="missing: backbone.vocab_embed.embedding"):
        MDLMForMaskedLM.from_pretrained(tmp_path / "ar")


@torch.no_grad()
def test_energy_by_reference_stays_where_it_is(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(), str(tmp_path / "gpt2"), energy_type="ar", energy_by_reference=True
    )
    model.save_pretrained(tmp_path / "whole")
    stored = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(name.startswith("denoiser.") for name in stored)

    loaded = AutoModel.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(loaded.energy(CLEAN, NOISY), model.energy(CLEAN, NOISY))
    with pytest.raises(ValueError, match="not loaded from a repository"):
        EDLMForMaskedDiffusion.from_components(
            tiny_denoiser(),
            tiny_gpt2(),
            energy_type="ar",
            energy_by_reference=True,
        )


def test_composite_with_foreign_code_is_not_saved(tmp_path):
    model = composite("none")

    class Foreign(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return model.denoiser(input_ids)

    whole = EDLMForMaskedDiffusion.from_components(Foreign(), mask_token_id=12)
    with pytest.raises(ValueError, match="Foreign, whose code is not part of this package"):
        whole.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_config_of_the_whole_round_trips(tmp_path):
    config = composite("gpt2").config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert json.loads((tmp_path / "config.json").read_text())["energy_config"]["model_type"] == "gpt2"


REMOTE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("edlm_hf") is None
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
folder, auto_class, expected = sys.argv[1:4]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = globals()[auto_class].from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
noisy = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
with torch.no_grad():
    logits = model(noisy).logits if hasattr(model, "get_output_embeddings") and model.get_output_embeddings() else None
torch.save({"logits": logits, "name": type(model).__name__}, expected)
if hasattr(model, "generate") and config.model_type == "edlm":
    tokens = model.generate(noisy, generator=torch.Generator().manual_seed(0))
    assert (tokens != 12).all() and tokens.shape == noisy.shape
model.save_pretrained(expected + "-saved")
again = globals()[auto_class].from_pretrained(expected + "-saved", trust_remote_code=True)
for name, weight in model.state_dict().items():
    assert torch.equal(weight, again.state_dict()[name])
"""


@pytest.fixture(scope="module")
def without_package(tmp_path_factory):
    return BarePython(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(
    ("kind", "auto_class", "name"),
    [
        ("nce", "AutoModelForMaskedLM", "EDLMForMaskedDiffusion"),
        ("shared", "AutoModel", "EDLMForMaskedDiffusion"),
        ("ar", "AutoModelForCausalLM", "EDLMForMaskedDiffusion"),
        ("denoiser", "AutoModelForMaskedLM", "MDLMForMaskedLM"),
        ("drafter", "AutoModelForMaskedLM", "MDLMForMaskedLM"),
        ("causal", "AutoModelForCausalLM", "MDLMForCausalLM"),
        ("trunk", "AutoModel", "MDLMModel"),
    ],
)
def test_code_travels_with_the_checkpoint(tmp_path, without_package, kind, auto_class, name):
    parts = {
        "denoiser": tiny_denoiser,
        "causal": tiny_causal,
        "trunk": lambda: tiny_denoiser().backbone,
    }
    parts["drafter"] = lambda: tiny_denoiser(draft_width=2)
    model = parts[kind]() if kind in parts else composite(kind)
    model.save_pretrained(tmp_path / "model")
    without_package(REMOTE, tmp_path / "model", auto_class, tmp_path / "result")
    result = torch.load(tmp_path / "result")

    assert result["name"] == name
    if kind != "trunk":
        torch.testing.assert_close(result["logits"], model(NOISY).logits.detach())
