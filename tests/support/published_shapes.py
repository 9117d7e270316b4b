"""Names and shapes of the weights of LLaDA, Dream and their kin, by their config.json."""

from published_configs import VOCABULARY


def llada_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width, hidden, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    narrow = width // config["n_heads"] * config["n_kv_heads"]
    shapes = {"model.transformer.wte": (rows, width), "model.transformer.ln_f": (width,)}
    shapes["model.transformer.ff_out"] = (rows, width)

    for n in range(config["n_layers"]):
        block = f"model.transformer.blocks.{n}."
        shapes |= {block + name: (width,) for name in ("attn_norm", "ff_norm")}
        shapes |= {block + name: (width, width) for name in ("q_proj", "attn_out")}
        shapes |= {block + name: (narrow, width) for name in ("k_proj", "v_proj")}
        shapes |= {block + name: (hidden, width) for name in ("ff_proj", "up_proj")}
        shapes[block + "ff_out"] = (width, hidden)

    return {f"{name}.weight": shape for name, shape in shapes.items()}


def llama_shapes(
    config: dict,
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> dict[str, tuple[int, ...]]:
    width, rows = config["hidden_size"], config["vocab_size"]
    size = config.get("head_dim") or width // config["num_attention_heads"]
    out_of = {"q_proj": size * config["num_attention_heads"]}
    out_of |= dict.fromkeys(("k_proj", "v_proj"), size * config["num_key_value_heads"])

    shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, width)

    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {f"{layer}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, length in out_of.items():
            shapes[f"{layer}self_attn.{name}.weight"] = (length, width)
            if qkv_bias:
                shapes[f"{layer}self_attn.{name}.bias"] = (length,)

        shapes[f"{layer}self_attn.o_proj.weight"] = (width, out_of["q_proj"])
        if qk_norm:
            shapes |= {f"{layer}self_attn.{norm}.weight": (size,) for norm in ("q_norm", "k_norm")}
        shapes |= mlp_shapes(f"{layer}mlp.", config, n)

    return shapes


def mlp_shapes(mlp: str, config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    if "num_experts" not in config:
        return swiglu_shapes(mlp, width, config["intermediate_size"])
    if not config["moe_layer_freq"][layer]:
        return swiglu_shapes(mlp, width, config["dense_intermediate_size"])
    shapes = {f"{mlp}gate.weight": (config["num_experts"], width)}
    for expert in range(config["num_experts"]):
        shapes |= swiglu_shapes(f"{mlp}experts.{expert}.", width, config["expert_intermediate_size"])
    return shapes


def swiglu_shapes(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{prefix}{name}.weight": (hidden, width) for name in ("gate_proj", "up_proj")}
    return shapes | {f"{prefix}down_proj.weight": (width, hidden)}


def diffullama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, shape in llama_shapes(config).items():
        name = name.replace("model.embed_tokens.", "embed_tokens.")
        shapes[name.replace("model.", "denoise_model.")] = shape
    return shapes


def diffugpt_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    width = config["n_embd"]
    rows = config.get("rows", VOCABULARY)
    shapes = {
        "embed_tokens.weight": (rows, width),
        "denoise_model.wpe.weight": (config["n_positions"], width),
    }
    wide = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    wide |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    norms = ["denoise_model.ln_f"]

    for n in range(config["n_layer"]):
        layer = f"denoise_model.h.{n}."
        norms += [f"{layer}ln_1", f"{layer}ln_2"]
        for name, shape in wide.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[1:]}

    return shapes | {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}


def qwen_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    return llama_shapes(config, qkv_bias=True)


def qwen3_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    return llama_shapes(config, qk_norm=True)
