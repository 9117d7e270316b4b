"""LLaDA, Dream and their kin by their published config.json and weights, written a second time.

An oracle for the package, of which it knows nothing, nor of transformers: plain torch in float64,
one row, no padding. The logits are those of position i for position i, as the published networks
give them: Dream, DiffuGPT and DiffuLLaMA predict token i + 1 there.
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
        if self.has(f"{name}.bias"):
            y = y + self[f"{name}.bias"]
        return y

    def rms(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean x^2 + eps), times the weights."""
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return x / (mean_square + eps).sqrt() * self[f"{name}.weight"]


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions of x (heads, L, size).

    At position p the pair (j, j + size / 2) turns by p theta^(-2 j / size).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies  # (L, half)

    left = x[..., :half]
    right = x[..., half:]
    turned_left = left * angles.cos() - right * angles.sin()
    turned_right = right * angles.cos() + left * angles.sin()
    return torch.cat([turned_left, turned_right], dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of every position to every position: (L, width).

    q is (heads, L, size), k and v have as many heads or fewer.
    """
    queries_per_key = len(q) // len(k)
    k = k.repeat_interleave(queries_per_key, dim=0)
    v = v.repeat_interleave(queries_per_key, dim=0)

    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # (heads, L, L)
    mixed = scores.softmax(-1) @ v  # (heads, L, size)
    return mixed.transpose(0, 1).flatten(1)


def heads_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """(L, width) -> (heads, L, size)."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


def swiglu(layer: Weights, x: torch.Tensor, gate: str, up: str, down: str) -> torch.Tensor:
    """W_down (silu(W_gate x) * W_up x)."""
    hidden = silu(layer.linear(gate, x)) * layer.linear(up, x)
    return layer.linear(down, hidden)


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


# What the parts of a layer are called
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


def decoder_layer(
    layer: Weights,
    x: torch.Tensor,
    names: dict[str, str],
    config: dict,
) -> torch.Tensor:
    """A layer of the Llama family on x (L, width)."""
    eps = config["rms_norm_eps"]
    theta = config["rope_theta"]

    # (heads, L, size)
    normed = layer.rms(names["before_attention"], x, eps)
    q = heads_of(layer.linear(names["q"], normed), config["heads"])
    k = heads_of(layer.linear(names["k"], normed), config["kv_heads"])
    v = heads_of(layer.linear(names["v"], normed), config["kv_heads"])
    if layer.has("self_attn.q_norm.weight"):
        q = layer.rms("self_attn.q_norm", q, eps)
        k = layer.rms("self_attn.k_norm", k, eps)

    attended = attend(rotate(q, theta), rotate(k, theta), v)
    x = x + layer.linear(names["out"], attended)

    normed = layer.rms(names["before_mlp"], x, eps)
    if layer.has("mlp.gate.weight"):
        return x + experts(layer.under("mlp"), normed, config["num_experts_per_tok"])
    return x + swiglu(layer, normed, names["gate"], names["up"], names["down"])


def llada_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V)."""
    config = config | {
        "heads": config["n_heads"],
        "kv_heads": config["n_kv_heads"],
    }
    network = Weights(tensors, "model.transformer.")
    x = network["wte.weight"][ids]  # (L, width)
    for n in range(config["n_layers"]):
        x = decoder_layer(network.under(f"blocks.{n}"), x, LLADA_NAMES, config)

    normed = network.rms("ln_f", x, config["rms_norm_eps"])
    return network.linear("ff_out", normed)


def llama_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V), for all that have the names of a Llama."""
    config = config | {
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
    }
    network = Weights(tensors, "model.")
    x = network["embed_tokens.weight"][ids]  # (L, width)
    for n in range(config["num_hidden_layers"]):
        x = decoder_layer(network.under(f"layers.{n}"), x, LLAMA_NAMES, config)

    normed = network.rms("norm", x, config["rms_norm_eps"])
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return Weights(tensors).linear(head, normed)


def diffullama_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    renamed = {name.replace("denoise_model.", "model."): x for name, x in tensors.items()}
    renamed["model.embed_tokens.weight"] = tensors["embed_tokens.weight"]
    return llama_logits(config, renamed, ids)


def diffugpt_logits(config: dict, tensors: dict, ids: torch.LongTensor) -> torch.Tensor:
    """(L,) ids -> (L, V): a GPT-2 without its causal mask, whose matrices are stored transposed."""
    network = Weights(tensors, "denoise_model.")
    width = config["n_embd"]
    eps = config["layer_norm_epsilon"]
    num_heads = config["n_head"]

    def norm(part: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (width,), part[f"{name}.weight"], part[f"{name}.bias"], eps)

    def conv(part: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ part[f"{name}.weight"] + part[f"{name}.bias"]

    embedding = Weights(tensors)["embed_tokens.weight"]
    x = embedding[ids] + network["wpe.weight"][: len(ids)]
    for n in range(config["n_layer"]):
        layer = network.under(f"h.{n}")

        # q, k and v lie side by side in one matrix
        normed = norm(layer, "ln_1", x)
        q, k, v = conv(layer, "attn.c_attn", normed).chunk(3, -1)
        attended = attend(
            heads_of(q, num_heads),
            heads_of(k, num_heads),
            heads_of(v, num_heads),
        )
        x = x + conv(layer, "attn.c_proj", attended)

        normed = norm(layer, "ln_2", x)
        hidden = gelu(conv(layer, "mlp.c_fc", normed), approximate="tanh")
        x = x + conv(layer, "mlp.c_proj", hidden)

    return norm(network, "ln_f", x) @ embedding.T
