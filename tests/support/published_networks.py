"""LLaDA, Dream and their kin by their published config.json and weights, written a second time.

An oracle for the package, of which it knows nothing, nor of transformers: plain torch in float64, one row, no padding.
`PUBLISHED` has, for every family, a config.json of tiny sizes with the settings of the public one, the names and shapes
of the weights, and the logits. The logits are those of position i for position i, as the published networks give them:
Dream, DiffuGPT and DiffuLLaMA predict token i + 1 there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import gelu, layer_norm, silu

VOCABULARY, MASK, END, START = 24, 20, 21, 22

# config.json of GSAI-ML/LLaDA-8B-Instruct, and the sum of the bytes that its index of weights says
LLADA_8B = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
LLADA_8B_BYTES = 16_031_162_368

LLADA = LLADA_8B | {
    "d_model": 16,
    "embedding_size": VOCABULARY + 4,  # rows without a token
    "eos_token_id": END,
    "mask_token_id": MASK,
    "max_sequence_length": 32,
    "mlp_hidden_size": 24,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "pad_token_id": END,
    "vocab_size": VOCABULARY,
}
SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": VOCABULARY,
}
LLADA_MOE = SIZES | {
    "architectures": ["LLaDAModelLM"],
    "attention_bias": False,
    "auto_map": LLADA_8B["auto_map"],
    "clip_qkv": None,
    "dense_intermediate_size": 20,
    "eos_token_id": END,
    "expert_intermediate_size": 12,
    "hidden_act": "silu",
    "model_type": "llada",
    "moe_layer_freq": [0, 1],
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "pad_token_id": END,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 1,
    "router_aux_loss_coef": 0.01,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
DREAM = SIZES | {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": END,
    "eos_token_id": END,
    "hidden_act": "silu",
    "intermediate_size": 24,
    "mask_token_id": MASK,
    "max_window_layers": 2,
    "model_type": "Dream",
    "pad_token_id": END,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
}
A2D = {name: value for name, value in DREAM.items() if name not in ("mask_token_id", "use_mrope")}
A2D |= {"auto_map": {"AutoModelForMaskedLM": "modeling.A2DLMHeadModel"}, "bos_token_id": START}
A2D_LLAMA = A2D | {"model_type": "a2d-llama", "rope_theta": 10000.0}
A2D_QWEN2 = A2D | {"model_type": "a2d-qwen2"}
A2D_QWEN3 = A2D | {"model_type": "a2d-qwen3", "head_dim": 8, "tie_word_embeddings": True}
DIFFULLAMA = A2D_LLAMA | {"model_type": "llama", "auto_map": None}
DIFFUGPT = {
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "bos_token_id": START,
    "embd_pdrop": 0.1,
    "eos_token_id": START,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 32,
    "resid_pdrop": 0.1,
    "vocab_size": VOCABULARY - 1,  # one fewer than the rows: the mask was added
}


class Weights:
    """Weights by name, with a prefix in front, in float64."""

    def __init__(self, tensors: dict[str, torch.Tensor], prefix: str = ""):
        self.tensors = tensors
        self.prefix = prefix

    def under(self, name: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[self.prefix + name].double()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """W x (+ b)."""
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if self.has(f"{name}.bias") else y

    def rms(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self[f"{name}.weight"]


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions of x (heads, L, size): the pair (j, j + size / 2) turns by p theta^(-2 j / size)."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies  # (L, half)
    left, right = x[..., :half], x[..., half:]
    turned = left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()
    return torch.cat(turned, dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every position sees every position: q (heads, L, size), k and v of as many heads or fewer -> (L, width)."""
    share = len(q) // len(k)
    k, v = k.repeat_interleave(share, dim=0), v.repeat_interleave(share, dim=0)
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def heads_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """(L, width) -> (heads, L, size)."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


def swiglu(layer: Weights, x: torch.Tensor, gate: str, up: str, down: str) -> torch.Tensor:
    return layer.linear(down, silu(layer.linear(gate, x)) * layer.linear(up, x))


def experts(layer: Weights, x: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` likeliest experts of every token, each times its probability among all."""
    chances = layer.linear("gate", x).softmax(-1)  # (L, experts)
    y = torch.zeros_like(x)
    for token, row in enumerate(chances):
        for expert in row.argsort(descending=True)[:count].tolist():
            of_expert = swiglu(
                layer.under(f"experts.{expert}"),
                x[token],
                "gate_proj",
                "up_proj",
                "down_proj",
            )
            y[token] += row[expert] * of_expert
    return y


# How a layer's parts are called
LLAMA_NAMES = {
    "before_attention": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "before_mlp": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
LLADA_NAMES = {
    "before_attention": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "out": "attn_out",
    "before_mlp": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}


def decoder_layer(layer: Weights, x: torch.Tensor, names: dict[str, str], config: dict) -> torch.Tensor:
    """A layer of the Llama family on x (L, width)."""
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    heads, kv_heads = config["heads"], config["kv_heads"]

    normed = layer.rms(names["before_attention"], x, eps)
    q = heads_of(layer.linear(names["q"], normed), heads)
    k = heads_of(layer.linear(names["k"], normed), kv_heads)
    v = heads_of(layer.linear(names["v"], normed), kv_heads)
    if layer.has("self_attn.q_norm.weight"):
        q, k = layer.rms("self_attn.q_norm", q, eps), layer.rms("self_attn.k_norm", k, eps)
    x = x + layer.linear(names["out"], attend(rotate(q, theta), rotate(k, theta), v))

    normed = layer.rms(names["before_mlp"], x, eps)
    if layer.has("mlp.gate.weight"):
        return x + experts(layer.under("mlp"), normed, config["num_experts_per_tok"])
    return x + swiglu(layer, normed, names["gate"], names["up"], names["down"])


def llada_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V)."""
    config = config | {"heads": config["n_heads"], "kv_heads": config["n_kv_heads"]}
    network = Weights(tensors, "model.transformer.")
    x = network["wte.weight"][ids]
    for n in range(config["n_layers"]):
        x = decoder_layer(network.under(f"blocks.{n}"), x, LLADA_NAMES, config)
    return network.linear("ff_out", network.rms("ln_f", x, config["rms_norm_eps"]))


def llama_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V), for all that have the names of a Llama."""
    config = config | {
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
    }
    network = Weights(tensors, "model.")
    x = network["embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        x = decoder_layer(network.under(f"layers.{n}"), x, LLAMA_NAMES, config)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return Weights(tensors).linear(head, network.rms("norm", x, config["rms_norm_eps"]))


def diffullama_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    renamed = {name.replace("denoise_model.", "model."): x for name, x in tensors.items()}
    renamed["model.embed_tokens.weight"] = tensors["embed_tokens.weight"]
    return llama_logits(config, renamed, ids)


def diffugpt_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V): a GPT-2 without its causal mask, whose matrices are stored transposed."""
    network = Weights(tensors, "denoise_model.")
    width, eps = config["n_embd"], config["layer_norm_epsilon"]

    def norm(part: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (width,), part[f"{name}.weight"], part[f"{name}.bias"], eps)

    def conv(part: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ part[f"{name}.weight"] + part[f"{name}.bias"]

    embedding = Weights(tensors)["embed_tokens.weight"]
    x = embedding[ids] + network["wpe.weight"][: len(ids)]
    for n in range(config["n_layer"]):
        layer = network.under(f"h.{n}")
        qkv = conv(layer, "attn.c_attn", norm(layer, "ln_1", x)).chunk(3, -1)
        x = x + conv(layer, "attn.c_proj", attend(*(heads_of(part, config["n_head"]) for part in qkv)))
        hidden = gelu(conv(layer, "mlp.c_fc", norm(layer, "ln_2", x)), approximate="tanh")
        x = x + conv(layer, "mlp.c_proj", hidden)

    return norm(network, "ln_f", x) @ embedding.T


# ---------------------------------------------------------------------------------------------------- names and shapes


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


@dataclass(frozen=True)
class Published:
    """A family: config.json, names and shapes of the weights, the logits (L, V) of a row, and their shift."""

    config: dict
    shapes: Callable[[dict], dict]
    logits: Callable[[dict, dict, torch.LongTensor], torch.Tensor]
    shift: int = 0

    def weights(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random weights. The norms stay near one."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in self.shapes(self.config).items():
            drawn = 0.4 * torch.randn(shape, generator=generator)
            is_norm = len(shape) == 1 and name.endswith(".weight")
            weights[name] = 1 + drawn / 4 if is_norm else drawn
        return weights

    def write(self, folder: Path, num_files: int = 1, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
        """Write config.json with `changes`, and the weights in one file or in several with an index."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | changes))
        weights = self.weights(seed)
        write_weights(folder, weights, num_files)
        return weights

    def denoiser(self, weights: dict[str, torch.Tensor]) -> Callable[[torch.LongTensor], torch.Tensor]:
        """Ids (1, L) -> logits (1, L, V) of the clean tokens at their own positions. No other token exists."""

        def logits_of(ids: torch.LongTensor) -> torch.Tensor:
            logits = self.logits(self.config, weights, ids[0])
            if self.shift:  # as the published samplers put them in place
                logits = torch.cat([logits[:1], logits[:-1]])
            logits[:, VOCABULARY:] = -torch.inf
            return logits[None]

        return logits_of


def write_weights(folder: Path, weights: dict[str, torch.Tensor], num_files: int = 1) -> None:
    if num_files == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return

    names, weight_map = sorted(weights), {}
    for n in range(num_files):
        file = f"model-{n + 1:05d}-of-{num_files:05d}.safetensors"
        weight_map |= dict.fromkeys(names[n::num_files], file)
        save_file(
            {name: weights[name] for name in names[n::num_files]},
            folder / file,
            metadata={"format": "pt"},
        )

    index = {
        "metadata": {"total_size": sum(x.nbytes for x in weights.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


PUBLISHED = {
    "LLaDA": Published(LLADA, llada_shapes, llada_logits),
    "LLaDA-MoE": Published(LLADA_MOE, qwen3_shapes, llama_logits),
    "Dream": Published(DREAM, qwen_shapes, llama_logits, shift=1),
    "A2D-Llama": Published(A2D_LLAMA, llama_shapes, llama_logits),
    "A2D-Qwen2": Published(A2D_QWEN2, qwen_shapes, llama_logits),
    "A2D-Qwen3": Published(A2D_QWEN3, qwen3_shapes, llama_logits),
    "DiffuGPT": Published(DIFFUGPT, diffugpt_shapes, diffugpt_logits, shift=1),
    "DiffuLLaMA": Published(DIFFULLAMA, diffullama_shapes, diffullama_logits, shift=1),
}
