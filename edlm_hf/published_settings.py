"""Settings of published config.json files as arguments of the configurations of transformers."""

# Settings of config.json that speak of the published code, or that are decided here
NOT_OF_THE_NETWORK = ("architectures", "auto_map", "model_type", "transformers_version")
NOT_OF_THE_NETWORK += ("dtype", "torch_dtype", "use_cache", "_name_or_path")


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

    settings = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": published.get("mlp_hidden_size") or published["mlp_ratio"] * width,
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


def require(published: dict, name: str, *allowed) -> None:
    """Raise ValueError if a setting is there with a value that the class does not compute."""
    value = published.get(name)
    if value is not None and value not in allowed:
        choices = " or ".join(map(repr, (*allowed, None)))
        raise ValueError(
            f"{name} is {value!r} in config.json, but transformers has a class for {choices} only. "
            "This model needs the code that is published with it."
        )


__all__ = ["settings_as_they_are", "settings_of_llada", "settings_of_llada_moe", "settings_without_window"]
