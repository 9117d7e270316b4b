"""The layers of the masked diffusion transformer of MDLM, under the names of the published checkpoints.

Shapes: B rows, L positions, H hidden, d of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_mdlm import MDLMConfig
from .projection import full_precision, precision_of


class MDLMEmbedding(nn.Embedding):
    """An `nn.Embedding` whose weight is stored under the published name `embedding`."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.embedding = self._parameters.pop("weight")

    @property
    def weight(self) -> nn.Parameter:
        return self.embedding

    @weight.setter
    def weight(self, value: nn.Parameter):
        self.embedding = value


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: the modulations and the final projections of the published networks."""


class MDLMSigmaMap(nn.Module):
    """Embedding of the total noise sigma, (B,) -> (B, cond_dim), in full precision under autocast as well."""

    FREQUENCIES = 128

    def __init__(self, cond_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, sigma: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`dtype`: of the activations of the network, in which layers that say nothing else take their inputs."""
        dtype = precision_of(self.mlp, dtype)
        precise = torch.promote_types(dtype, torch.float32)
        with full_precision(sigma):
            exponents = torch.arange(self.FREQUENCIES, dtype=precise, device=sigma.device) / self.FREQUENCIES
            angles = sigma.to(precise)[:, None] * torch.exp(-math.log(10000) * exponents)
            waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
            return nn.functional.silu(self.mlp(waves.to(dtype)))


def rotary_cos_sin(position_ids: torch.Tensor, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of p * 10000^(-2j / d), repeated for the two halves: (B, L) -> twice (B, 1, L, head_dim).

    Computed in at least float32 at each call: there is no buffer that a cast to half precision could damage.
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, dtype=precise, device=position_ids.device) / head_dim
    angles = position_ids[:, None, :, None].to(precise) * 10000.0**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves (a, b) of the last dimension: (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(d)) v with the softmax in at least float32: (B, H, L, d) -> (B, L, H, d)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def take_positions(hidden_states: torch.Tensor, positions: torch.LongTensor | None) -> torch.Tensor:
    """The given positions (B, Q) of (B, L, H), or all of them."""
    if positions is None:
        return hidden_states
    return hidden_states.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))


@dataclass(frozen=True)
class BlockReader:
    """Another network that runs a block with linear layers and a mode of its own.

    It comes as an argument, so that the block stays as it is for everybody else who calls it at the same time, hooks on
    its modules run, and a checkpointed block that is computed again finds the same reader.

    Args:
        layers: has the linear layers under their names in the block. It is wrapped in this class since what moves
            arguments from device to device (accelerate) moves modules too.
    """

    layers: nn.Module


class MDLMFeedForward(nn.Sequential):
    """Modules one after the other. Those that a reader has under the same name take their place."""

    def forward(self, hidden_states: torch.Tensor, reader: BlockReader | None = None) -> torch.Tensor:
        for name, module in self.named_children():
            if reader is not None:
                module = getattr(reader.layers, name, module)
            hidden_states = module(hidden_states)
        return hidden_states


class MDLMBlock(GradientCheckpointingLayer):
    """One transformer block; with conditioning, shift, scale and gate of both branches come from `adaLN_modulation`."""

    num_key_value_groups = 1

    def __init__(self, config: MDLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.causal
        self.head_dim = config.hidden_dim // config.n_heads
        self.scaling = self.head_dim**-0.5
        self.norm1 = nn.LayerNorm(config.hidden_dim, bias=False)
        self.attn_qkv = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)
        self.attn_out = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.norm2 = nn.LayerNorm(config.hidden_dim, bias=False)
        self.mlp = MDLMFeedForward(
            nn.Linear(config.hidden_dim, 4 * config.hidden_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * config.hidden_dim, config.hidden_dim),
        )
        self.adaLN_modulation = None if config.causal else ZeroLinear(config.cond_dim, 6 * config.hidden_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layer_past: Cache | None = None,
        queries: torch.LongTensor | None = None,
        reader: BlockReader | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, H) -> (B, L, H) and the attention weights (B, heads, L, L), or None where the backend has none.

        Args:
            layer_past: key/value cache, under the one name that every version of transformers leaves out where the
                block is checkpointed.
            queries: (B, Q), the positions whose states alone are computed: (B, Q, H). Keys and values still come from
                all.
            reader: its linear layers, its dropout and its checkpointing act in place of the block's own.
        """
        inputs = hidden_states, conditioning, attention_mask, position_embeddings, layer_past, queries
        if reader is None:
            return self.compute(*inputs, **kwargs)

        compute = partial(self.compute, reader=reader, **kwargs)
        checkpointed = self.gradient_checkpointing and self.training  # by the base class, around this method
        if reader.layers.gradient_checkpointing and reader.layers.training and not checkpointed:
            return reader.layers._gradient_checkpointing_func(compute, *inputs)
        return compute(*inputs)

    def compute(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layer_past: Cache | None,
        queries: torch.LongTensor | None,
        *,
        reader: BlockReader | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `forward` computes; that decides whether its activations are kept or computed again."""
        layers = self if reader is None else reader.layers
        shift1 = scale1 = shift2 = scale2 = 0.0
        gate1 = gate2 = 1.0
        if conditioning is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(conditioning)[:, None].chunk(6, dim=-1)

        # x + gate attention((1 + scale) norm(x) + shift)
        qkv = layers.attn_qkv(self.norm1(hidden_states) * (1 + scale1) + shift1)
        attended, weights = self.attend(qkv, attention_mask, position_embeddings, layer_past, queries, **kwargs)
        hidden_states = take_positions(hidden_states, queries)
        hidden_states = hidden_states + gate1 * self.drop(layers.attn_out(attended), layers.training)

        # x + gate mlp((1 + scale) norm(x) + shift)
        modulated = self.norm2(hidden_states) * (1 + scale2) + shift2
        if reader is None:
            expanded = self.mlp(modulated)
        else:
            expanded = self.mlp(modulated, reader=BlockReader(layers.mlp))
        return hidden_states + gate2 * self.drop(expanded, layers.training), weights

    def attend(
        self,
        qkv: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layer_past: Cache | None,
        queries: torch.LongTensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of all positions, or of `queries` (B, Q), to all: (B, L, 3 H) -> (B, L, H), and the weights."""
        batch, length = qkv.shape[:2]
        qkv = qkv.view(batch, length, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each (B, heads, L, head_dim)
        query = apply_rotary(query, *position_embeddings)
        key = apply_rotary(key, *position_embeddings)
        if queries is not None:
            query = query.gather(2, queries[:, None, :, None].expand(-1, query.shape[1], -1, self.head_dim))
            length = queries.shape[1]
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return attended.reshape(batch, length, -1).contiguous(), weights

    def drop(self, x: torch.Tensor, training: bool) -> torch.Tensor:
        return nn.functional.dropout(x, p=self.config.dropout, training=training)


class MDLMOutputLayer(nn.Module):
    """Final norm with its modulation; a head adds its projection here as `linear`, where published files store it."""

    def __init__(self, config: MDLMConfig):
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_dim, bias=False)
        self.adaLN_modulation = None if config.causal else ZeroLinear(config.cond_dim, 2 * config.hidden_dim)

    def forward(self, hidden_states: torch.Tensor, conditioning: torch.Tensor | None) -> torch.Tensor:
        """(B, L, H) -> (B, L, H), before `linear`."""
        hidden_states = self.norm_final(hidden_states)
        if conditioning is None:
            return hidden_states
        shift, scale = self.adaLN_modulation(conditioning)[:, None].chunk(2, dim=-1)
        return hidden_states * (1 + scale) + shift
