"""Files of LLaDA, Dream and their kin: weights, settings, and what is refused by name."""

import json

import pytest
import torch
from published import seed
from published_configs import LLADA_8B, LLADA_8B_BYTES, MASK, VOCABULARY
from published_families import HOLES, PUBLISHED, write_weights
from published_shapes import llada_shapes
from transformers import LlamaForCausalLM

import edlm_hf
from edlm_hf import EDLMForMaskedDiffusion, load_published_denoiser
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.published_layouts import LLADA, layout_of


def test_llada_8b_has_the_published_names_and_bytes():
    """Of full size, on the device `meta`: 291 weights in bfloat16."""
    shapes = llada_shapes(LLADA_8B)
    config = layout_of(LLADA_8B, shapes).configuration(LLADA_8B, LLADA_8B["mask_token_id"])
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    parameters = dict(model.named_parameters())
    assert 2 * sum(weight.numel() for weight in parameters.values()) == LLADA_8B_BYTES
    assert len(parameters) == len(shapes) == 291
    assert sorted(map(tuple, (weight.shape for weight in parameters.values()))) == sorted(shapes.values())


def test_code_in_the_repository_is_not_run(tmp_path):
    PUBLISHED["LLaDA"].write(tmp_path)
    for name in ("modeling_llada.py", "configuration_llada.py"):
        (tmp_path / name).write_text("raise RuntimeError('this ran')")
    denoiser = load_published_denoiser(str(tmp_path), trust_remote_code=True)
    assert denoiser.dtype == torch.bfloat16  # as config.json says
    assert edlm_hf.load_published_denoiser is load_published_denoiser


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("name", ["LLaDA", "Dream", "A2D-Qwen2"])
def test_commands_say_how_a_published_model_is_loaded(name, trusting, tmp_path):
    PUBLISHED[name].write(tmp_path)
    (tmp_path / "configuration_llada.py").write_text("raise RuntimeError('this ran')")
    with pytest.raises(ValueError, match=f"is a {name} with code for transformers 4.*load_published_denoiser"):
        load_with_tokenizer(str(tmp_path), trust_remote_code=trusting)


def test_rows_without_a_token_are_never_drawn(tmp_path):
    PUBLISHED["LLaDA"].write(tmp_path)
    denoiser = load_published_denoiser(str(tmp_path), dtype="float32")
    model = EDLMForMaskedDiffusion.from_components(denoiser)
    assert model.config.absent_token_ids == [[VOCABULARY, VOCABULARY + 3]]
    with torch.no_grad():
        model.denoiser.lm_head.weight[VOCABULARY:] = 100 * model.denoiser.lm_head.weight[3]
    assert (model.generate(HOLES[None].repeat(16, 1), eos_token_id=None, generator=seed()) < VOCABULARY).all()


def test_buffers_of_old_versions_are_left_out(tmp_path):
    weights = PUBLISHED["Dream"].write(tmp_path)
    expected = load_published_denoiser(str(tmp_path)).state_dict()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    write_weights(tmp_path, weights | buffer)
    found = load_published_denoiser(str(tmp_path)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("LLaDA", {"block_type": "sequential"}, "block_type is 'sequential'.*only"),
        ("LLaDA", {"include_qkv_bias": True}, "include_qkv_bias is True"),
        ("LLaDA", {"layer_norm_type": "default"}, "layer_norm_type is 'default'"),
        ("LLaDA", {"alibi": True}, "alibi is True"),
        ("LLaDA-MoE", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8"),
        ("LLaDA-MoE", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias is True"),
        ("LLaDA", {"model_type": "llada2_moe"}, "not of a published layout.*LLaDA, LLaDA-MoE, Dream, A2D-Llama"),
        ("Dream", {"model_type": "qwen2"}, "not of a published layout.*from_pretrained"),
        ("LLaDA", {"n_layers": 3}, r"Missing \(9\): .*layers\.2\."),
        ("LLaDA", {"n_layers": 1}, r"Left over \(9\): .*layers\.1\."),
        ("Dream", {"intermediate_size": 32}, r"Of another shape \(6\): .*down_proj.weight \(16, 24\), not \(16, 32\)"),
    ],
)
def test_what_cannot_be_computed_is_refused(name, changes, message, tmp_path):
    PUBLISHED[name].write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_published_denoiser(str(tmp_path), mask_token_id=MASK)


def test_files_that_are_missing_are_named(tmp_path):
    weights = PUBLISHED["LLaDA"].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "n_heads"}))
    with pytest.raises(ValueError, match="config.json has no n_heads, which every LLaDA has"):
        load_published_denoiser(str(tmp_path))

    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="neither model.safetensors.index.json nor model.safetensors"):
        load_published_denoiser(str(tmp_path))

    (tmp_path / "config.json").unlink()
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        load_published_denoiser(str(tmp_path))


def test_llada_moe_is_told_from_llada_by_its_settings():
    assert layout_of(LLADA_8B, ["model.transformer.wte.weight"]) is LLADA
    assert layout_of(PUBLISHED["LLaDA-MoE"].config, ["lm_head.weight"]).name == "LLaDA-MoE"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("LLaDA", {"n_heads": "2"}, "n_heads of config.json is '2', but it must be a positive integer"),
        ("LLaDA", {"n_heads": 3}, "3 heads for a width of 16"),
        ("LLaDA", {"n_kv_heads": 3}, "heads"),
        ("LLaDA", {"n_layers": 0}, "n_layers of config.json is 0"),
        ("LLaDA", {"rope_theta": "x"}, "rope_theta of config.json is 'x', but it must be a positive number"),
        ("LLaDA", {"rope_theta": 0}, "rope_theta of config.json is 0"),
        ("LLaDA", {"mlp_hidden_size": None, "mlp_ratio": 1.3}, r"mlp_ratio \* d_model is 20.8"),
        ("LLaDA", {"mlp_hidden_size": None, "mlp_ratio": "2"}, "mlp_ratio of config.json is '2'"),
        ("LLaDA-MoE", {"num_attention_heads": "2"}, "num_attention_heads of config.json is '2'"),
        ("Dream", {"hidden_size": 16.5}, "hidden_size of config.json is 16.5"),
        ("DiffuGPT", {"n_head": 3}, "3 heads for a width of"),
    ],
)
def test_numbers_that_no_network_has_are_refused_by_name(name, changes, message, tmp_path):
    PUBLISHED[name].write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_published_denoiser(str(tmp_path), mask_token_id=MASK)


@pytest.mark.parametrize("name", ["LLaDA", "DiffuGPT"])
@pytest.mark.parametrize("mask", [99, -1, 2.5])
def test_a_mask_token_has_a_row(name, mask, tmp_path):
    PUBLISHED[name].write(tmp_path)
    with pytest.raises(ValueError, match=f"mask_token_id is {mask}, but"):
        load_published_denoiser(str(tmp_path), mask_token_id=mask)


def test_a_ratio_may_be_written_as_a_float(tmp_path):
    hidden = PUBLISHED["LLaDA"].config["mlp_hidden_size"]
    ratio = hidden / PUBLISHED["LLaDA"].config["d_model"]
    PUBLISHED["LLaDA"].write(tmp_path, mlp_hidden_size=None, mlp_ratio=ratio)
    model = load_published_denoiser(str(tmp_path))
    assert isinstance(ratio, float) and model.config.intermediate_size == hidden
