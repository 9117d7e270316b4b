"""Settings of published config.json files as arguments of the configurations of transformers."""

import math
from numbers import Real

from edlm_hf.modeling.generation_config_edlm import given_whole_number

# Settings of config.json that speak of the published code, or that are decided here
NOT_OF_THE_NETWORK = ("architectures", "auto_map", "model_type", "transformers_version")
NOT_OF_THE_NETWORK += ("dtype", "torch_dtype", "use_cache", "_name_or_path")

# Settings of all families that are sizes and counts
SIZES = ("d_model", "hidden_size", "n_embd", "n_heads", "num_attention_heads", "n_head", "n_kv_heads")
SIZES += ("num_key_value_heads", "head_dim", "n_layers", "num_hidden_layers", "n_layer", "vocab_size", "embedding_size")
SIZES += ("max_sequence_length", "max_position_embeddings", "n_positions", "num_experts", "mlp_hidden_size")
SIZES += ("intermediate_size", "dense_intermediate_size", "expert_intermediate_size")


def check_numbers(published: dict) -> None:
    """Raise ValueError unless the sizes and numbers of a config.json are those of a network.

    Settings that are missing or null are not checked here.
    """
    # 1. Sizes and counts are whole numbers
    for name in SIZES:
        if published.get(name) is not None:
            given_whole_number(f"{name} of config.json", published[name], 1)

    # 2. Numbers
    rope = published.get("rope_parameters")
    nested = rope.get("rope_theta") if isinstance(rope, dict) else None
    numbers = {
        "rope_theta": published.get("rope_theta", nested),
        "rms_norm_eps": published.get("rms_norm_eps"),
        "mlp_ratio": published.get("mlp_ratio"),
    }
    for name, value in numbers.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < math.inf):
            raise ValueError(f"{name} of config.json is {value!r}, but it must be a positive number.")

    # 3. A head has an equal part of the width, and the heads share those for keys and values equally
    width = first_of(published, "d_model", "hidden_size", "n_embd")
    heads = first_of(published, "n_heads", "num_attention_heads", "n_head")
    kv_heads = first_of(published, "n_kv_heads", "num_key_value_heads")
    if width and heads and published.get("head_dim") is None and width % heads:
        raise ValueError(f"config.json has {heads} heads for a width of {width}, which does not divide by them.")
    if heads and kv_heads and heads % kv_heads:
        raise ValueError(f"config.json has {kv_heads} heads for keys and values, by which {heads} heads do not divide.")


def first_of(published: dict, *names: str):
    """The value of the first of the settings that is there, None if none is."""
    return next((published[name] for name in names if published.get(name) is not None), None)


def settings_as_they_are(published: dict) -> dict:
    """Settings of a configuration that was made from one of transformers: the names are the same."""
    return {name: value for name, value in published.items() if name not in NOT_OF_THE_NETWORK}


def settings_without_window(published: dict) -> dict:
    """The same for Qwen models, whose bidirectional versions see the whole text in every layer."""
    settings = settings_as_they_are(published)
    for name in ("layer_types", "sliding_window", "max_window_layers"):
        settings.pop(name, None)
    settings["use_sliding_window"] = False
    return settings


def settings_of_llada(published: dict) -> dict:
    """LLaDA has names of its own for the settings of a Llama, and more of them than a Llama has."""
    # 1. What a Llama computes: other values are refused, because the result would be wrong in silence
    require(published, "block_type", "llama")
    require(published, "activation_type", "silu")
    require(published, "layer_norm_type", "rms")
    require(published, "layer_norm_with_affine", True)
    require(published, "rope", True)
    require(published, "block_group_size", 1)
    for name in ("alibi", "include_bias", "include_qkv_bias", "bias_for_layer_norm"):
        require(published, name, False)
    for name in ("attention_layer_norm", "input_emb_norm", "scale_logits"):
        require(published, name, False)

    # 2. Heads for keys and values: as many as for queries, fewer (grouped), or one
    width = published["d_model"]
    heads = published["n_heads"]
    kv_heads = published.get("n_kv_heads") or heads
    if published.get("multi_query_attention"):
        kv_heads = 1

    # 3. The table of embeddings may have more rows than there are tokens
    vocabulary = published["vocab_size"]
    rows = published.get("embedding_size") or vocabulary

    # 4. The ratio may be 4 or 4.0
    hidden = published.get("mlp_hidden_size")
    if hidden is None:
        hidden = given_whole_number("mlp_ratio * d_model", exact(published["mlp_ratio"] * width), 1)

    settings = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": published["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": published["max_sequence_length"],
        "rms_norm_eps": published["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": published["rope_theta"]},
        "tie_word_embeddings": published["weight_tying"],
        "attention_dropout": published.get("attention_dropout", 0.0),
    }
    if rows > vocabulary:  # they fill the table up to a round number
        settings["absent_token_ids"] = [[vocabulary, rows - 1]]
    return settings


def settings_of_llada_moe(published: dict) -> dict:
    """LLaDA-MoE is a Qwen3-MoE in which the weights of the chosen experts need not sum to one."""
    # 1. What a Qwen3-MoE computes
    require(published, "qk_layernorm", True)
    require(published, "attention_bias", False)
    require(published, "clip_qkv")
    require(published, "moe_router_enable_expert_bias", False)
    require(published, "moe_router_score_function", "softmax")
    require(published, "shared_expert_intermediate_size")
    require(published, "routed_scaling_factor", 1)
    require(published, "partial_rotary_factor", 1)

    # 2. moe_layer_freq has a 1 for every layer of experts, and a 0 for every dense one
    num_layers = published["num_hidden_layers"]
    heads = published["num_attention_heads"]
    is_sparse = published.get("moe_layer_freq") or [1] * num_layers
    expert_size = published["expert_intermediate_size"]

    # 3. Settings that only the published code knows are left out
    settings = settings_as_they_are(published)
    of_experts = [name for name in settings if name.startswith(("moe_", "router_", "routed_"))]
    of_layers = ["dense_intermediate_size", "expert_intermediate_size", "qk_layernorm", "clip_qkv"]
    for name in of_experts + of_layers:
        settings.pop(name, None)

    # 4. The same settings by the names of the class
    return {
        **settings,
        "intermediate_size": published.get("dense_intermediate_size") or expert_size,
        "moe_intermediate_size": expert_size,
        "mlp_only_layers": [layer for layer in range(num_layers) if not is_sparse[layer]],
        "decoder_sparse_step": 1,
        "head_dim": published["hidden_size"] // heads,
        "num_key_value_heads": published.get("num_key_value_heads") or heads,
        "norm_topk_prob": False,
        "output_router_logits": False,
    }


def exact(value: float) -> float | int:
    """64.0 -> 64. Other numbers as they are."""
    return int(value) if value == int(value) else value


def require(published: dict, name: str, *allowed) -> None:
    """Raise ValueError if a setting is there with a value that the class does not compute."""
    value = published.get(name)
    if value is not None and value not in allowed:
        choices = " or ".join(map(repr, (*allowed, None)))
        raise ValueError(
            f"{name} is {value!r} in config.json, but transformers has a class for {choices} only. "
            "This model needs the code that is published with it."
        )


__all__ = [
    "check_numbers",
    "settings_as_they_are",
    "settings_of_llada",
    "settings_of_llada_moe",
    "settings_without_window",
]
