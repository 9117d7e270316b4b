"""Autoregressive energies with a common prompt: exact for every kind of cache, and run once where that is exact."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from checkpointing import switch_checkpointing
from published import randomised, tiny_causal, tiny_denoiser
from torch import nn
from transformers.cache_utils import DynamicCache

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.prefix_cache import (
    cache_argument,
    longest_text_with_fixed_frequencies,
    returned_cache,
)

VOCAB, LENGTH, PROMPT, MASK = 33, 40, 24, 32
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SSM = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
DELTA = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}
PHI = SIZES | {"rope_parameters": LONG_ROPE, "sliding_window": None}

# Models that keep something else than the keys and values of all tokens.
OTHERS = {
    "Jamba": SIZES | EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "Bamba": SIZES | SSM | {"attn_layer_indices": [1, 3]},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "FalconH1": SIZES | SSM | {"mamba_d_ssm": 32, "mamba_d_head": 8},
    "Qwen3Next": SIZES | EXPERTS | DELTA | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "Qwen3_5": SIZES | DELTA,
    "OlmoHybrid": SIZES | DELTA,
    "Zamba2": SIZES
    | {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "use_mem_rope": False,
    },
    "GraniteMoeHybrid": SIZES
    | SSM
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "RecurrentGemma": SIZES | {"lru_width": 32, "attention_window_size": 8, "head_dim": 8},
    "Mamba": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "bos_token_id": 0},
    "Mamba2": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "bos_token_id": 0,
    },
    "Rwkv": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64, "bos_token_id": 0},
    "Mistral": SIZES | {"sliding_window": 8},
    "Gemma2": SIZES | {"sliding_window": 8, "head_dim": 8},
    "Moshi": SIZES | {"sliding_window": 8},
    "Phi3": PHI | {"original_max_position_embeddings": 30},
}
ORDINARY = {
    "GPT2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0},
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Mistral": SIZES | {"sliding_window": 64},
    "Phi3": PHI | {"original_max_position_embeddings": 40},
}


def build(name: str, sizes: dict) -> nn.Module:
    class_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    if not hasattr(hf, class_name):
        pytest.skip(f"this version of transformers has no {class_name}")
    model_class = getattr(hf, class_name)
    torch.manual_seed(1)
    model = model_class(model_class.config_class(**sizes)).eval()

    with torch.no_grad():  # so that what comes first changes what follows
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)

    return model


def with_energy(causal: nn.Module) -> EDLMForMaskedDiffusion:
    return EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(vocab_size=VOCAB, model_length=64),
        causal,
    )


def candidates(rows: int = 2, prompt: int = PROMPT) -> tuple[torch.Tensor, torch.Tensor]:
    """Three candidates for each row that have a prompt in common, and the noisy row."""
    ids = torch.randint(2, 32, (rows, 3, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[:, :, :prompt] = ids[:, :1, :prompt]
    noisy = ids[:, 0].clone()
    noisy[:, prompt:] = MASK
    return ids, noisy


@torch.no_grad()
def by_definition(
    model: EDLMForMaskedDiffusion,
    ids: torch.Tensor,
    noisy: torch.Tensor,
) -> torch.Tensor:
    """-log p_AR(x_0) + log p_theta(x_0|x_t), the causal model reading whole texts without a cache."""
    text = nn.functional.pad(ids, (1, 0)).flatten(0, 1)  # the start token is 0
    logits = model.energy_model(input_ids=text[:, :-1], use_cache=False).logits[..., :MASK]
    log_ar = logits.log_softmax(-1).gather(-1, text[:, 1:, None]).view(ids.shape).sum(-1)
    log_theta = (
        model(noisy)
        .logits[..., :MASK]
        .log_softmax(-1)[:, None]
        .expand(
            -1,
            ids.shape[1],
            -1,
            -1,
        )
    )
    log_theta = log_theta.gather(-1, ids[..., None]).squeeze(-1)
    return (log_theta * (noisy == MASK)[:, None]).sum(-1) - log_ar


def shapes_read(network: nn.Module) -> list[tuple[int, int]]:
    """A list that grows by the shape of the ids of every call."""
    shapes = []
    network.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)),
        with_kwargs=True,
    )
    return shapes


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_models_whose_caches_are_not_ordinary_read_whole_texts(name):
    model = with_energy(build(name, OTHERS[name]))
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    shapes = shapes_read(model.energy_model)
    for _ in range(2):
        shapes.clear()
        torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)

    assert shapes == [(6, LENGTH)]  # from the second call on nothing is read in vain
    short, noisy = candidates(prompt=8)
    torch.testing.assert_close(
        model.energy(short, noisy),
        by_definition(model, short, noisy),
        rtol=0,
        atol=1e-3,
    )


@torch.no_grad()
@pytest.mark.parametrize("name", [*ORDINARY, "MDLM"])
def test_a_common_prompt_runs_once_where_the_cache_is_ordinary(name):
    if name == "MDLM":
        model = with_energy(tiny_causal(vocab_size=VOCAB, model_length=64, bos_token_id=0))
    else:
        model = with_energy(build(name, ORDINARY[name]))

    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    shapes = shapes_read(getattr(model.energy_model, "backbone", model.energy_model))
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


@torch.no_grad()
def test_positions_that_are_counted_by_tokens_go_on_from_no_cache():
    sizes = SIZES | {"is_decoder": True, "max_position_embeddings": 66}
    model = with_energy(build("Roberta", sizes))  # a padding token, 0, is in front of the texts
    ids, noisy = candidates()
    ids[:, :, 5] = noisy[:, 5] = 0
    torch.testing.assert_close(
        model.energy(ids, noisy),
        by_definition(model, ids, noisy),
        rtol=0,
        atol=1e-3,
    )


@torch.no_grad()
def test_a_window_of_attention_is_shared_up_to_its_length():
    model = with_energy(build("Mistral", SIZES | {"sliding_window": 32}))
    ids, noisy = candidates()
    shapes = shapes_read(model.energy_model)
    torch.testing.assert_close(
        model.energy(ids, noisy),
        by_definition(model, ids, noisy),
        rtol=0,
        atol=1e-3,
    )
    shapes.clear()
    short = ids[..., :31], noisy[:, :31]  # the start token in front
    torch.testing.assert_close(model.energy(*short), by_definition(model, *short), rtol=0, atol=1e-3)
    assert shapes[:2] == [(2, PROMPT), (6, 31 - PROMPT)]


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_checkpointing_on_has_the_energies_that_it_has_without(training):
    causal = build("Llama", SIZES)
    model = with_energy(causal)
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    switch_checkpointing(causal, True)
    model.train(training)  # where checkpointing is on, no cache comes back
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)

    model.eval()
    shapes = shapes_read(causal)
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


def test_energies_of_a_common_prompt_have_gradients():
    model = with_energy(build("GPT2", ORDINARY["GPT2"]))
    ids, noisy = candidates()
    gradients = []
    for prompt in (ids[:, :1], ids):  # alone, and beside others
        model.zero_grad()
        model.energy(prompt, noisy)[:, 0].sum().backward()
        gradients.append(model.energy_model.transformer.wte.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- modules of others


class Foreign(nn.Module):
    """Somebody's own module around a Llama."""

    def __init__(self, sizes: dict | None = None):
        super().__init__()
        self.inner = build("Llama", SIZES | (sizes or {}))
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


class CountsFromZero(Foreign):
    """With a cache its positions begin again."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        return self.inner(
            input_ids=input_ids, position_ids=positions, past_key_values=past_key_values, use_cache=use_cache
        )


class KeepsAState(Foreign):
    """The mean of all tokens so far enters the logits, and the cache knows nothing of it."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        count = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        means = self.inner.get_input_embeddings()(input_ids).cumsum(1) / count
        output.logits = output.logits + self.inner.lm_head(means)
        return output


class ReturnsPairs(Foreign):
    """Its cache is a tuple of keys and values."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        pairs = ((torch.zeros(len(input_ids), 2, input_ids.shape[1], 8),) * 2,) if use_cache else None
        return SimpleNamespace(logits=output.logits, past_key_values=pairs)


class ReturnsNone(Foreign):
    """It takes a cache and gives none back."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        return SimpleNamespace(logits=self.inner(input_ids=input_ids, use_cache=False).logits)


class OwnClass(DynamicCache):
    pass


class ReturnsItsOwnClass(Foreign):
    """Its cache has a class of its own."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        if past_key_values is None and use_cache:
            past_key_values = OwnClass()
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


class NamesNothing(Foreign):
    """As wrappers do: its signature says nothing."""

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class CalledCache(Foreign):
    """As models are since transformers 5.24."""

    def forward(self, input_ids, attention_mask=None, cache=None, use_cache=False):
        output = self.inner(input_ids=input_ids, past_key_values=cache, use_cache=use_cache)
        return SimpleNamespace(logits=output.logits, cache=output.past_key_values)


@torch.no_grad()
@pytest.mark.parametrize(
    "module", [CountsFromZero, KeepsAState, ReturnsPairs, ReturnsNone, ReturnsItsOwnClass, NamesNothing]
)
def test_modules_of_others_that_cannot_go_on_exactly_read_whole_texts(module):
    model = with_energy(module())
    ids, noisy = candidates()
    for _ in range(2):
        shapes = shapes_read(model.energy_model)
        torch.testing.assert_close(
            model.energy(ids, noisy),
            by_definition(model, ids, noisy),
            rtol=0,
            atol=1e-3,
        )
    assert shapes[0] == (6, LENGTH)


@torch.no_grad()
@pytest.mark.parametrize("module", [Foreign, CalledCache])
def test_modules_of_others_that_go_on_exactly_read_a_common_prompt_once(module):
    model = with_energy(module())
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    model.energy(ids, noisy)  # measured once
    shapes = shapes_read(model.energy_model)
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


def test_both_names_of_the_cache_are_known():
    assert cache_argument(CalledCache()) == "cache"
    assert cache_argument(Foreign()) == "past_key_values"
    assert cache_argument(NamesNothing()) is None
    cache = DynamicCache()
    for name in ("cache", "past_key_values"):
        assert returned_cache(SimpleNamespace(**{name: cache})) is cache
    assert returned_cache(SimpleNamespace(past_key_values=None)) is None


def test_frequencies_that_depend_on_the_length_bound_what_is_shared():
    model = randomised(build("Phi3", OTHERS["Phi3"]))
    assert longest_text_with_fixed_frequencies(model) == 30
    assert longest_text_with_fixed_frequencies(build("Llama", SIZES)) == float("inf")
    model.config.rope_parameters = {
        "full_attention": {"rope_type": "dynamic"},
        "other": {"rope_type": "default"},
    }
    assert longest_text_with_fixed_frequencies(model) == 64
