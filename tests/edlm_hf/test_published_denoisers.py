"""Published layouts of LLaDA, Dream and their kin: loaded without their code, they compute and sample as published."""

import json

import published_samplers
import pytest
import torch
from published import randomised, seed
from published_networks import (
    END,
    LLADA_8B,
    LLADA_8B_BYTES,
    MASK,
    PUBLISHED,
    START,
    VOCABULARY,
    llada_shapes,
    write_weights,
)
from published_tokenizers import FEW_LETTERS, write_fast, write_slow
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import edlm_hf
from edlm_hf import EDLMForMaskedDiffusion, load_published_denoiser, load_published_tokenizer
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.modeling.custom_generate import generate
from edlm_hf.published_layouts import LLADA, layout_of

# Position 0 is known, since a shifted network says nothing of it
HOLES = torch.tensor([START, 3, MASK, 5, MASK, MASK, 7, MASK, 2])
PROMPT = torch.tensor([START, 3, 9, 5])
GREEDY = {"do_sample": False, "eos_token_id": None, "num_candidates": 1}
build = EDLMForMaskedDiffusion.from_components


@pytest.fixture(scope="module", params=PUBLISHED)
def loaded(request, tmp_path_factory):
    """A family, its random weights in three files, and the denoiser that was loaded from them."""
    published = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("published")
    weights = published.write(folder, num_files=3)
    return published, weights, load_published_denoiser(str(folder), mask_token_id=MASK, dtype="float32")


def published_sampler(published, weights, ids, steps, block_length=None, gen_start=0):
    """The tokens of LLaDA's loop, or of Dream's for shifted networks."""
    logits_of = published.denoiser(weights)
    if published.shift:
        return published_samplers.dream(logits_of, ids, MASK, steps, "maskgit_plus")[0]
    return published_samplers.llada_low_confidence(logits_of, ids, MASK, steps, block_length, gen_start)[0]


@torch.no_grad()
def test_logits_are_those_of_the_published_network(loaded):
    published, weights, denoiser = loaded
    expected = published.logits(published.config, weights, HOLES)
    torch.testing.assert_close(
        denoiser(input_ids=HOLES[None]).logits[0].double(),
        expected,
        rtol=0,
        atol=2e-5,
    )

    # Padding takes no part
    ids = torch.nn.functional.pad(HOLES[None], (0, 3), value=4)
    padded = denoiser(input_ids=ids, attention_mask=(torch.arange(12) < 9).long()[None]).logits[0, :9]
    torch.testing.assert_close(padded.double(), expected, rtol=0, atol=2e-5)


def test_configuration_says_what_the_others_need(loaded):
    published, _, denoiser = loaded
    config = denoiser.config
    assert (config.is_causal, config.mask_token_id, config.logits_shift) == (False, MASK, published.shift)
    assert (config.bos_token_id, config.eos_token_id) == tuple(
        published.config.get(name) for name in ("bos_token_id", "eos_token_id")
    )
    assert not denoiser.training and type(denoiser).__module__.startswith("transformers.")

    model = build(denoiser)
    assert (model.config.mask_token_id, model.config.logits_shift) == (MASK, published.shift)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_greedy_tokens_are_those_of_the_published_sampler(loaded, steps):
    published, weights, denoiser = loaded
    model = build(denoiser)
    counts = "dream" if published.shift else "even"
    options = GREEDY | {"sampler": "top_k", "max_denoising_steps": steps, "reveal_counts": counts}

    filled = model.generate(HOLES[None], **options)[0]
    assert torch.equal(filled, published_sampler(published, weights, HOLES, steps))
    assert MASK not in filled and torch.equal(filled[HOLES != MASK], HOLES[HOLES != MASK])

    ids = torch.cat([PROMPT, torch.full((6,), MASK)])
    longer = model.generate(PROMPT[None], max_new_tokens=6, **options)[0]
    assert torch.equal(longer, published_sampler(published, weights, ids, steps))

    if not published.shift:
        blocks = model.generate(PROMPT[None], max_new_tokens=6, block_length=3, **options)[0]
        assert torch.equal(blocks, published_sampler(published, weights, ids, 2 * steps, 3, len(PROMPT)))


@pytest.mark.parametrize("score", ["confidence", "margin", "entropy"])
def test_dream_orders_are_those_of_its_sampler(loaded, score):
    published, weights, denoiser = loaded
    algorithm = {"confidence": "maskgit_plus", "margin": "topk_margin", "entropy": "entropy"}[score]
    expected = published_samplers.dream(published.denoiser(weights), HOLES, MASK, 3, algorithm)[0]
    options = GREEDY | {
        "sampler": "top_k",
        "score": score,
        "max_denoising_steps": 3,
        "reveal_counts": "dream",
    }
    assert torch.equal(build(denoiser).generate(HOLES[None], **options)[0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_rows_are_those_of_each_row_alone(loaded, side):
    published, weights, denoiser = loaded
    rows = [HOLES[:5], HOLES, PROMPT]
    width = max(map(len, rows))
    pads = [((width - len(row), 0) if side == "left" else (0, width - len(row))) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, pad, value=END) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack(
        [torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
    )

    options = GREEDY | {
        "sampler": "top_k",
        "max_denoising_steps": 3,
        "max_new_tokens": 4,
        "block_length": 4,
    }
    together = build(denoiser).generate(ids, attention_mask=mask, **options)
    for row, alone in enumerate(rows):
        expected = build(denoiser).generate(alone[None], **options)[0]
        kept = torch.cat([mask[row].bool(), torch.ones(4, dtype=torch.bool)])
        assert torch.equal(together[row][kept], expected)


def test_custom_generate_knows_the_conventions(loaded):
    _, _, denoiser = loaded
    expected = build(denoiser).generate(
        HOLES[None],
        eos_token_id=None,
        max_denoising_steps=4,
        generator=seed(),
    )
    got = generate(denoiser, HOLES[None], eos_token_id=None, max_denoising_steps=4, generator=seed())
    assert torch.equal(got, expected)


@torch.no_grad()
def test_saved_composites_and_denoisers_load_again(loaded, tmp_path):
    published, weights, denoiser = loaded
    model = build(denoiser)
    model.save_pretrained(tmp_path / "whole")
    denoiser.save_pretrained(tmp_path / "denoiser")
    expected = model(HOLES[None]).logits

    whole = EDLMForMaskedDiffusion.from_pretrained(tmp_path / "whole")
    alone = build(str(tmp_path / "denoiser"))
    for again in (whole, alone):
        assert (again.config.mask_token_id, again.config.logits_shift) == (MASK, published.shift)
        torch.testing.assert_close(again(HOLES[None]).logits, expected)
        tokens = again.generate(HOLES[None], max_denoising_steps=3, **GREEDY)
        assert torch.equal(tokens, model.generate(HOLES[None], max_denoising_steps=3, **GREEDY))

    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "denoiser"), type(denoiser))


# ------------------------------------------------------------------------------------------------------------- energies


def qwen2(rows=VOCABULARY):
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
    }
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64, "vocab_size": rows}
    return randomised(
        Qwen2ForCausalLM(Qwen2Config(**sizes, bos_token_id=END, eos_token_id=END)),
        seed=3,
    )


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
@pytest.mark.parametrize("name", ["Dream", "LLaDA"])
def test_energy_of_a_causal_qwen_is_its_own_and_the_denoisers(name, energy_type, tmp_path):
    """E = -log p_AR(x_0) + log p_theta(x_0 | x_t) by hand, p_theta from the second writing of the network."""
    published, causal = PUBLISHED[name], qwen2()
    weights = published.write(tmp_path / "denoiser")
    denoiser = load_published_denoiser(str(tmp_path / "denoiser"), dtype="float32")
    model = build(denoiser, causal, energy_type=energy_type)

    candidates = HOLES.repeat(1, 3, 1)
    candidates[:, :, HOLES == MASK] = torch.randint(0, MASK, (1, 3, 4), generator=seed())
    energies = model.energy(candidates, HOLES[None])[0]

    masked = HOLES == MASK
    logits = published.denoiser(weights)(HOLES[None])[0]
    logits[:, MASK] = -torch.inf
    log_theta = logits.log_softmax(-1)
    impossible = [MASK] if name == "Dream" else [MASK, *range(VOCABULARY, len(logits[0]))]

    for candidate, energy in zip(candidates[0], energies, strict=True):
        inputs = torch.cat([torch.tensor([END]), candidate[:-1]])
        logits_ar = causal(input_ids=inputs[None]).logits[0].double()
        logits_ar[:, [i for i in impossible if i < VOCABULARY]] = -torch.inf
        log_ar = logits_ar.log_softmax(-1)
        counted = masked if energy_type == "coar" else torch.ones_like(masked)
        at = torch.arange(len(candidate))
        by_hand = (log_theta[at, candidate] * masked).sum() - (log_ar[at, candidate] * counted).sum()
        torch.testing.assert_close(energy.double(), by_hand, rtol=0, atol=1e-4)

    tokens = model.generate(
        HOLES[None],
        max_denoising_steps=3,
        num_candidates=4,
        eos_token_id=None,
        generator=seed(),
    )
    assert MASK not in tokens
    model.save_pretrained(tmp_path / "whole")
    again = EDLMForMaskedDiffusion.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(again.energy(candidates, HOLES[None])[0], energies)

    same = again.generate(
        HOLES[None],
        max_denoising_steps=3,
        num_candidates=4,
        eos_token_id=None,
        generator=seed(),
    )
    assert torch.equal(same, tokens)


# ----------------------------------------------------------------------------------------------------- names and shapes


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
    model = build(load_published_denoiser(str(tmp_path), dtype="float32"))
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


# ----------------------------------------------------------------------------------------------------------- tokenizers


SPECIAL = ["<|mask|>", "<|endoftext|>", "<|startoftext|>"]  # MASK, END and START


def test_mask_of_llada_is_the_token_that_its_configuration_names(tmp_path):
    PUBLISHED["LLaDA"].write(tmp_path)
    write_fast(tmp_path, FEW_LETTERS, ["<|mdm_mask|>", *SPECIAL[1:]], eos_token="<|endoftext|>")
    tokenizer = load_published_tokenizer(str(tmp_path))
    assert (tokenizer.mask_token, tokenizer.mask_token_id, tokenizer.eos_token_id) == ("<|mdm_mask|>", MASK, END)
    assert len(tokenizer) == 23

    model = build(load_published_denoiser(str(tmp_path), dtype="float32"), tokenizer=tokenizer)
    assert model.config.absent_token_ids == [[23, VOCABULARY + 3]]
    tokens = model.generate(**tokenizer("abc <|mdm_mask|>d", return_tensors="pt"), eos_token_id=None)
    assert MASK not in tokens


def test_mask_that_only_the_tokenizer_knows_is_taken_from_it(tmp_path):
    for name in ("LLaDA-MoE", "A2D-Qwen3", "DiffuGPT"):
        folder = tmp_path / name
        PUBLISHED[name].write(folder)
        stated = {"mask_token": "<|mask|>"} if name == "DiffuGPT" else {}
        write_fast(folder, FEW_LETTERS, SPECIAL, **stated)
        assert load_published_denoiser(str(folder)).config.mask_token_id == MASK
        assert load_published_tokenizer(str(folder)).mask_token_id == MASK

    write_fast(folder, FEW_LETTERS, SPECIAL[1:])
    with pytest.raises(ValueError, match="says which token is the mask.*mask_token_id="):
        load_published_denoiser(str(folder))


def test_tokenizer_of_dream_needs_no_code(tmp_path):
    """vocab.json, merges.txt and the table of added tokens, in a class that transformers has."""
    PUBLISHED["Dream"].write(tmp_path)
    named = {"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_slow(tmp_path, FEW_LETTERS, SPECIAL, **named, bos_token="<|startoftext|>")

    tokenizer = load_published_tokenizer(str(tmp_path))
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (MASK, END, START)
    ids = tokenizer("abc <|mask|>d").input_ids
    assert ids == [1, 2, 3, 0, MASK, 4] and tokenizer.decode(ids) == "abc <|mask|>d"

    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("abc <|mask|>d").input_ids == ids


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
