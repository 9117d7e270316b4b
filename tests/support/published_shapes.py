"""Names and shapes of the weights of LLaDA, Dream and their kin, by their config.json.

Random weights are drawn in the order of the names.
"""

from published_configs import VOCABULARY


def llada_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width = config["d_model"]
    hidden = config["mlp_hidden_size"]
    rows = config["embedding_size"]
    narrow = width // config["n_heads"] * config["n_kv_heads"]

    of_block = {
        "attn_norm": (width,),
        "ff_norm": (width,),
        "q_proj": (width, width),
        "attn_out": (width, width),
        "k_proj": (narrow, width),
        "v_proj": (narrow, width),
        "ff_proj": (hidden, width),
        "up_proj": (hidden, width),
        "ff_out": (width, hidden),
    }
    shapes = {
        "model.transformer.wte.weight": (rows, width),
        "model.transformer.ln_f.weight": (width,),
        "model.transformer.ff_out.weight": (rows, width),
    }
    for n in range(config["n_layers"]):
        for name, shape in of_block.items():
            shapes[f"model.transformer.blocks.{n}.{name}.weight"] = shape

    return shapes


def llama_shapes(
    config: dict,
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    rows = config["vocab_size"]
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // num_heads
    query = head_dim * num_heads
    key = head_dim * config["num_key_value_heads"]

    # the same in every layer, except for the MLP
    of_layer = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    for name, length in {"q_proj": query, "k_proj": key, "v_proj": key}.items():
        of_layer[f"self_attn.{name}.weight"] = (length, width)
        if qkv_bias:
            of_layer[f"self_attn.{name}.bias"] = (length,)

    of_layer["self_attn.o_proj.weight"] = (width, query)
    if qk_norm:
        of_layer["self_attn.q_norm.weight"] = (head_dim,)
        of_layer["self_attn.k_norm.weight"] = (head_dim,)

    shapes = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, width)

    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for name, shape in of_layer.items():
            shapes[layer + name] = shape
        shapes.update(mlp_shapes(f"{layer}mlp.", config, n))

    return shapes


def mlp_shapes(mlp: str, config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    if "num_experts" not in config:
        return swiglu_shapes(mlp, width, config["intermediate_size"])
    if not config["moe_layer_freq"][layer]:
        return swiglu_shapes(mlp, width, config["dense_intermediate_size"])

    num_experts = config["num_experts"]
    hidden = config["expert_intermediate_size"]
    shapes = {f"{mlp}gate.weight": (num_experts, width)}
    for expert in range(num_experts):
        shapes.update(swiglu_shapes(f"{mlp}experts.{expert}.", width, hidden))
    return shapes


def swiglu_shapes(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (hidden, width),
        f"{prefix}up_proj.weight": (hidden, width),
        f"{prefix}down_proj.weight": (width, hidden),
    }


def diffullama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, shape in llama_shapes(config).items():
        name = name.replace("model.embed_tokens.", "embed_tokens.")
        shapes[name.replace("model.", "denoise_model.")] = shape
    return shapes


def diffugpt_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width = config["n_embd"]
    rows = config.get("rows", VOCABULARY)

    # GPT-2 keeps the weights of a projection as (inputs, outputs)
    projections = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    norms = ["denoise_model.ln_f"]
    shapes = {
        "embed_tokens.weight": (rows, width),
        "denoise_model.wpe.weight": (config["n_positions"], width),
    }
    for n in range(config["n_layer"]):
        layer = f"denoise_model.h.{n}."
        norms += [f"{layer}ln_1", f"{layer}ln_2"]
        for name, shape in projections.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[1:]

    for norm in norms:
        shapes[f"{norm}.weight"] = (width,)
        shapes[f"{norm}.bias"] = (width,)

    return shapes


def qwen_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    return llama_shapes(config, qkv_bias=True)


def qwen3_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    return llama_shapes(config, qk_norm=True)
