"""Tiny networks with random weights, of every type that transformers lists as a language model.

A configuration is its class's default with small sizes in place of the large ones. The names of the sizes differ, and
some types need more: `SIZES` has what names mean everywhere, `SPECIAL` what a type needs of its own.
"""

import dataclasses

import torch
from torch import nn
from transformers import PreTrainedConfig

VOCABULARY, LENGTH = 33, 64
HIDDEN, HEADS, GROUPS, LAYERS = 32, 4, 2, 4
HEAD = HIDDEN // HEADS

# More parameters than this are a size that was not made small.
MOST_PARAMETERS = 4_000_000

# Values of the fields of configurations, where a class has them
SIZES = {}


def sizes(value, *names: str) -> None:
    SIZES.update(dict.fromkeys(names, value))


sizes(VOCABULARY, "vocab_size", "vocab_size_per_layer_input", "audio_vocab_size")
sizes(LENGTH, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length")
sizes(LENGTH, "max_target_positions", "max_source_positions")
sizes(
    HIDDEN,
    *("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size", "output_embedding_size"),
    *("input_embedding_size", "word_embed_proj_dim", "cross_attention_hidden_size", "lru_width"),
    *("true_hidden_size", "intra_bottleneck_size", "mamba_d_ssm", "embedding_dim", "attention_hidden_size"),
)
sizes(
    LAYERS,
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"),
    *("encoder_layers", "num_encoder_layers", "decoder_layers", "num_decoder_layers"),
)
sizes(
    HEADS,
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    *("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
    *("mamba_n_heads", "linear_num_value_heads", "mamba_num_heads"),
)
sizes(GROUPS, "num_key_value_heads", "num_kv_heads", "linear_num_key_heads")
sizes(HEAD, "head_dim", "attention_head_dim", "d_head", "dim_head", "mamba_head_dim", "mamba_d_head")
sizes(
    HEAD,
    "linear_key_head_dim",
    "linear_value_head_dim",
    "v_head_dim",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
)
sizes(16, "q_lora_rank", "kv_lora_rank", "o_lora_rank")
sizes(
    2 * HIDDEN,
    *("intermediate_size", "n_inner", "d_inner", "hidden_dim", "ffn_dim", "dff", "dim_ff", "ffn_hidden_size"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("shared_intermediate_size", "intermediate_size_mlp", "feed_forward_size", "dense_intermediate_size"),
    *("moe_shared_expert_intermediate_size",),
)
sizes(2, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
sizes(1, "num_experts_per_tok", "moe_k", "moe_topk", "n_group", "topk_group", "num_shared_experts", "n_shared_experts")
sizes(8, "mamba_d_state", "state_size", "ssm_state_size", "chunk_size", "mamba_chunk_size", "sliding_window")
sizes(1, "mamba_n_groups", "n_groups", "mamba_ngroups")
sizes(2, "type_vocab_size", "expand", "mamba_expand")
sizes(4, "rotary_dim", "patch_size")
sizes(16, "image_size")

# What is given where a class has None by default, too
GIVEN = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "pad_token_id": 1,
    "mask_token_id": VOCABULARY - 1,
    "vocab_size": VOCABULARY,
    "head_dim": HEAD,
}

LATENT = {"num_key_value_heads": HEADS}  # multi-head latent attention has as many keys as queries
HYBRID_LAYERS = {"layer_types": ["linear_attention", "full_attention"] * 2}
LOCAL_HASHED = {
    "axial_pos_embds": False,
    "attn_layers": ["local"],
    "attention_head_size": HEAD,
    "local_attn_chunk_length": 4,
}
COUNTED = {"pad_index": 1, "mask_index": VOCABULARY - 1, "mask_token_id": VOCABULARY - 1}

# What a type needs beside that
SPECIAL = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": HYBRID_LAYERS | LATENT,
    "bamba": {"attn_layer_indices": [1, 3], "mamba_d_head": 16},
    "blt": {"encoder_hash_byte_group_vocab": 64, "num_hidden_layers": LAYERS},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": GROUPS, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": LATENT | {"topk_method": "greedy", "num_experts_per_tok": 1},
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "dots1": {"n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 1},
    "dots3_note": LATENT,
    "dots3_note_text": LATENT,
    "esmc": {"num_key_value_heads": HEADS},
    "eurobert": {"mask_token_id": VOCABULARY - 1},
    "falcon_h1": {"mamba_d_ssm": HIDDEN},
    "gemma3n_text": {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "flaubert": COUNTED,
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": HYBRID_LAYERS | LATENT | {"linear_head_dim": HEAD, "linear_num_heads": HEADS},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "longcat_flash": LATENT | {"expert_ffn_hidden_size": HIDDEN, "zero_expert_num": 2, "moe_topk": 2},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mamba2": {"head_dim": 16},
    "minicpm3": LATENT,
    "minimax": HYBRID_LAYERS | {"block_size": 8},
    "nemotron": {"num_key_value_heads": GROUPS},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "neomme": {"head_dim": 16},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
    "perceiver": {"d_latents": HIDDEN, "num_latents": 16, "num_self_attends_per_block": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64,
    },
    "recurrent_gemma": {"attention_window_size": 8},
    "reformer": LOCAL_HASHED,
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8, "shape_embed_dim": 8},
    "xlm": COUNTED,
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 16, "ffn_round_up_to_multiple_of": 8},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "youtu": LATENT,
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": HEADS, "num_mem_blocks": 1},
}


def tiny_config(config_class: type[PreTrainedConfig], **changes) -> PreTrainedConfig:
    """A configuration of a class with small sizes.

    A field that is None by default stays, since it follows from the others.

    Args:
        changes: fields with other values, where the class has them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    chosen = {name: value for name, value in SIZES.items() if defaults.get(name) is not None}
    chosen.update({name: value for name, value in (GIVEN | changes).items() if name in defaults})

    # Configurations inside it, of the class that is there by default
    for name in config_class.sub_configs:
        part = getattr(config_class(), name, None)
        if part is not None:
            chosen[name] = tiny_config(type(part), **changes).to_dict()

    chosen.update(SPECIAL.get(config_class.model_type, {}))
    return config_class(**chosen)


def tiny_network(model_class: type[nn.Module], config: PreTrainedConfig) -> nn.Module:
    """A network in eval mode with weights so large that every token changes the logits much.

    Raises:
        ValueError: it is not small.
    """
    with torch.device("meta"):
        size = sum(weight.numel() for weight in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"The {model_class.__name__} has {size} parameters: a size of it was not made small.")

    torch.manual_seed(1)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
                if not parameter.any():  # projections that start at zero
                    parameter.normal_(std=0.1)

    return model
