"""LLaDA, Dream and their kin by their published config.json and weights, written a second time.

An oracle for the package, of which it knows nothing, nor of transformers: plain torch in float64, one row, no padding.
The logits are those of position i for position i, as the published networks give them: Dream, DiffuGPT and DiffuLLaMA
predict token i + 1 there.
"""

import torch
from torch.nn.functional import gelu, layer_norm, silu


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
