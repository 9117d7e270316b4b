"""The layers of the transformer of MDLM, under the names of the published checkpoints.

Shapes: B rows, L positions, Q of these that are asked for, H hidden, d of a head.
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

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter. `module.weight = parameter` arrives here, and not at the property."""
        super().register_parameter("embedding" if name == "weight" else name, param)

    @property
    def weight(self) -> nn.Parameter:
        return self.embedding

    @weight.setter
    def weight(self, value: nn.Parameter):
        self.embedding = value


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, as published modulations and final projections do."""


class MDLMSigmaMap(nn.Module):
    """Embedding of the total noise sigma, (B,) -> (B, cond_dim).

    It is computed in full precision, under autocast as well.
    """

    FREQUENCIES = 128

    def __init__(self, cond_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * self.FREQUENCIES, cond_dim),
            nn.SiLU(),
            nn.Linear(cond_dim, cond_dim),
        )

    def forward(self, sigma: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Embed `sigma` (B,).

        Args:
            dtype: precision of the activations of the network. Layers whose weights do not say in
                which precision they take their inputs get this one.
        """
        dtype = precision_of(self.mlp, dtype)
        precise = torch.promote_types(dtype, torch.float32)

        with full_precision(sigma):
            # sigma * 10000^(-j / 128): (B, 128)
            numbers = torch.arange(self.FREQUENCIES, dtype=precise, device=sigma.device)
            exponents = numbers / self.FREQUENCIES
            frequencies = torch.exp(-math.log(10000) * exponents)
            angles = sigma.to(precise)[:, None] * frequencies

            # (B, 256) -> (B, cond_dim)
            waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
            embedding = self.mlp(waves.to(dtype))
            return nn.functional.silu(embedding)


def rotary_cos_sin(
    position_ids: torch.Tensor,
    head_dim: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of p * 10000^(-2j / d), repeated for the two halves of a head.

    Computed in at least float32 at each call: there is no buffer that a cast to half precision
    could damage.

    Args:
        position_ids: (B, L), the positions p.

    Returns:
        Twice (B, 1, L, d).
    """
    # 10000^(-2j / d), (d / 2,)
    precise = torch.promote_types(dtype, torch.float32)
    even_numbers = torch.arange(0, head_dim, 2, dtype=precise, device=position_ids.device)
    frequencies = 10000.0 ** -(even_numbers / head_dim)

    # (B, 1, L, d / 2) -> (B, 1, L, d)
    positions = position_ids[:, None, :, None].to(precise)
    angles = positions * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves (a, b) of the last dimension: (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat([-b, a], dim=-1)
    return x * cos + turned * sin


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
    """softmax(q k^T / sqrt(d)) v with the softmax in at least float32.

    Shapes: (B, heads, L, d) -> (B, L, heads, d), and the weights (B, heads, L, L).
    """
    # q k^T / sqrt(d), with -inf added where a key is hidden: (B, heads, L, L)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask

    # Half precision would round the sum over many keys
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = weights.softmax(-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)

    attended = torch.matmul(weights, value)
    return attended.transpose(1, 2).contiguous(), weights


def select_positions(
    hidden_states: torch.Tensor,
    positions: torch.LongTensor | None,
) -> torch.Tensor:
    """The states (B, Q, H) at some positions (B, Q) of (B, L, H), or all of them for None."""
    if positions is None:
        return hidden_states
    width = hidden_states.shape[-1]
    index = positions.unsqueeze(-1).expand(-1, -1, width)  # (B, Q, H)
    return hidden_states.gather(1, index)


@dataclass(frozen=True)
class BlockReader:
    """Another network that runs a block with linear layers and a mode of its own.

    It comes as an argument. So the block stays as it is for everybody else who calls it at the same
    time, hooks on its modules run, and a checkpointed block that is computed again finds the same
    reader.

    Args:
        layers: has the linear layers under their names in the block. This class wraps it since
            accelerate moves modules among the arguments from device to device, and would move it.
    """

    layers: nn.Module


class MDLMFeedForward(nn.Sequential):
    """Modules one after the other. Those that a reader has under the same name take their place."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        reader: BlockReader | None = None,
    ) -> torch.Tensor:
        for name, module in self.named_children():
            if reader is not None:
                module = getattr(reader.layers, name, module)
            hidden_states = module(hidden_states)
        return hidden_states


class MDLMBlock(GradientCheckpointingLayer):
    """One transformer block: attention, then a feed-forward network, each on a residual branch.

    x = x + gate1 * attention((1 + scale1) * norm1(x) + shift1)
    x = x + gate2 * mlp((1 + scale2) * norm2(x) + shift2)

    Shifts, scales and gates come from the conditioning c by `adaLN_modulation`. A causal block has
    no conditioning: its shifts and scales are 0 and its gates 1.
    """

    num_key_value_groups = 1

    def __init__(self, config: MDLMConfig, layer_idx: int):
        super().__init__()
        width = config.hidden_dim
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.causal
        self.head_dim = width // config.n_heads
        self.scaling = self.head_dim**-0.5

        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)

        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = MDLMFeedForward(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.adaLN_modulation = None
        if not config.causal:
            self.adaLN_modulation = ZeroLinear(config.cond_dim, 6 * width)

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
        """The states after the block, and the attention weights where the backend has them.

        Args:
            hidden_states: (B, L, H).
            conditioning: (B, cond_dim) or (1, cond_dim), None in a causal block.
            layer_past: key/value cache, under the one name that every version of transformers
                leaves out where the block is checkpointed.
            queries: (B, Q), the positions whose states alone are computed. Keys and values still
                come from all positions.
            reader: its linear layers, its dropout and its checkpointing act instead of the block's.

        Returns:
            (B, L, H) or (B, Q, H), and (B, heads, L, L) or None.
        """
        compute = partial(
            self.compute,
            queries=queries,
            reader=reader,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            layer_past=layer_past,
            **kwargs,
        )

        # The base class checkpoints this method where the block itself asks for it
        is_checkpointed = self.gradient_checkpointing and self.training
        if reader is not None and not is_checkpointed:
            layers = reader.layers
            if layers.gradient_checkpointing and layers.training:
                return layers._gradient_checkpointing_func(compute, hidden_states, conditioning)
        return compute(hidden_states, conditioning)

    def compute(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor | None,
        queries: torch.LongTensor | None = None,
        reader: BlockReader | None = None,
        **attention_inputs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the output of `forward`, which decides whether it is checkpointed."""
        # 1. Linear layers of the block or of its reader, and the modulation, each (B, 1, H)
        layers = self if reader is None else reader.layers
        shift1 = scale1 = shift2 = scale2 = 0.0
        gate1 = gate2 = 1.0
        if conditioning is not None:
            modulation = self.adaLN_modulation(conditioning)[:, None]
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)

        # 2. x + gate1 * attention((1 + scale1) * norm1(x) + shift1)
        modulated = self.norm1(hidden_states) * (1 + scale1) + shift1
        qkv = layers.attn_qkv(modulated)
        attended, weights = self.attend(qkv, queries, **attention_inputs)
        branch = self.drop(layers.attn_out(attended), layers.training)
        hidden_states = select_positions(hidden_states, queries) + gate1 * branch

        # 3. x + gate2 * mlp((1 + scale2) * norm2(x) + shift2)
        modulated = self.norm2(hidden_states) * (1 + scale2) + shift2
        if reader is None:
            expanded = self.mlp(modulated)
        else:
            expanded = self.mlp(modulated, reader=BlockReader(layers.mlp))
        branch = self.drop(expanded, layers.training)
        return hidden_states + gate2 * branch, weights

    def attend(
        self,
        qkv: torch.Tensor,
        queries: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layer_past: Cache | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of all positions, or of `queries` (B, Q), to all positions.

        Shapes: (B, L, 3 H) -> (B, L, H) or (B, Q, H), and the weights.
        """
        # (B, L, 3 H) -> three times (B, heads, L, d)
        batch, length = qkv.shape[:2]
        qkv = qkv.view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        # Rotate before positions are selected, and before keys enter the cache
        query = apply_rotary(query, *position_embeddings)
        key = apply_rotary(key, *position_embeddings)
        if queries is not None:
            length = queries.shape[1]
            num_heads = query.shape[1]
            index = queries[:, None, :, None]
            index = index.expand(-1, num_heads, -1, self.head_dim)  # (B, heads, Q, d)
            query = query.gather(2, index)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)

        # (B, L, heads, d), or (B, Q, heads, d), by the backend that the configuration names
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
    """The final norm with its modulation.

    A head adds its projection here as `linear`, under which published files store it.
    """

    def __init__(self, config: MDLMConfig):
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_dim, bias=False)
        self.adaLN_modulation = None
        if not config.causal:
            self.adaLN_modulation = ZeroLinear(config.cond_dim, 2 * config.hidden_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor | None,
    ) -> torch.Tensor:
        """(1 + scale) * norm(x) + shift: (B, L, H) -> (B, L, H), before `linear`."""
        hidden_states = self.norm_final(hidden_states)
        if conditioning is None:
            return hidden_states

        # (B, 1, 2 H) -> twice (B, 1, H)
        modulation = self.adaLN_modulation(conditioning)[:, None]
        shift, scale = modulation.chunk(2, dim=-1)
        return hidden_states * (1 + scale) + shift
