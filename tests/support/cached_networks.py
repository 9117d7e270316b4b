"""Tiny causal models with every kind of cache, and their energies of texts with a common prompt."""

import pytest
import torch
import transformers as hf
from published import tiny_denoiser
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion

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
