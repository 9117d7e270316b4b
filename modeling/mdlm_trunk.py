"""The masked diffusion transformer of MDLM without a task, and with a projection to the vocabulary.

Modules have the names of the published checkpoints, so that `kuleshov-group/mdlm-owt` loads without
any renaming: `backbone.vocab_embed.embedding`, `backbone.blocks.0.attn_qkv.weight`,
`backbone.output_layer.linear.weight`, ...

Shapes: B rows, L positions, H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mdlm import MDLMConfig
from .mdlm_blocks import (
    BlockReader,
    MDLMBlock,
    MDLMEmbedding,
    MDLMOutputLayer,
    MDLMSigmaMap,
    ZeroLinear,
    rotary_cos_sin,
)
from .mdlm_pretrained import MDLMPreTrainedModel
from .prefix_cache import given_cache
from .projection import wide_projection


class MDLMModel(MDLMPreTrainedModel):
    """The trunk: token ids to hidden states after the final norm.

    Attention is bidirectional or `causal` as configured.
    """

    _auto_class = "AutoModel"
    _auto_map = {"AutoModel": "mdlm_trunk.MDLMModel"}

    def __init__(self, config: MDLMConfig):
        super().__init__(config)
        self.vocab_embed = MDLMEmbedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = None if config.causal else MDLMSigmaMap(config.cond_dim)
        self.blocks = nn.ModuleList([MDLMBlock(config, index) for index in range(config.n_blocks)])
        self.output_layer = MDLMOutputLayer(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.vocab_embed

    def set_input_embeddings(self, value: nn.Embedding):
        self.vocab_embed = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        queries: torch.LongTensor | None = None,
        readers: Sequence[BlockReader] | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, L, H) after the final norm and its modulation, ready for a projection.

        Args:
            input_ids: (B, L) token ids. `inputs_embeds` (B, L, H) can be given instead.
            attention_mask: (B, L), 0 at padding, which then takes part in nothing. With a cache
                (B, past + L).
            timesteps: (B,) total noise sigma (not the diffusion time t), needed with
                `time_conditioning` only.
            position_ids: (B, L), counted over the non-padding tokens unless given.
            past_key_values: key/value cache, causal models only.
            cache: the same under another name.
            queries: (B, Q) positions whose states (B, Q, H) are wanted, all unless given. The last
                block computes no others. Bidirectional models only.
            readers: one for each block, of a network that runs this trunk with linear layers of its
                own.

        Raises:
            ValueError: not exactly one of the two inputs, a sequence longer than `model_length`,
                missing timesteps, or a cache given to a bidirectional model.
        """
        # 1. Embeddings (B, L, H), and the cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.vocab_embed(input_ids)

        cache = given_cache(cache, past_key_values)
        if cache is not None and not self.config.causal:
            raise ValueError("A bidirectional model has no key/value cache: call it without one.")
        if use_cache and self.config.causal and cache is None:
            cache = DynamicCache(config=self.config)

        # 2. Positions, mask and conditioning, which are the same for every block
        length = inputs_embeds.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        self.check_length(past, length)

        # (B, L): a token's position is the number of text tokens before it
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            tokens_before = attention_mask.long().cumsum(-1) - 1
            position_ids = tokens_before.clamp_min(0)[:, -length:]
        elif position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device).unsqueeze(0) + past
        head_dim = self.config.hidden_dim // self.config.n_heads
        position_embeddings = rotary_cos_sin(position_ids, head_dim, inputs_embeds.dtype)

        # By position, since the name of the cache there depends on the version of transformers
        if self.config.causal:
            mask = create_causal_mask(self.config, inputs_embeds, attention_mask, cache)
        else:
            mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
        conditioning = self.conditioning(timesteps, inputs_embeds)

        # 3. The blocks. The last one computes the states that are wanted alone.
        hidden_states = inputs_embeds
        for index, block in enumerate(self.blocks):
            is_last = index == len(self.blocks) - 1
            if is_last and queries is not None:
                kwargs["queries"] = queries
                # (B, 1, L, L) -> (B, 1, Q, L), since every query sees the same keys
                if mask is not None:
                    mask = mask[:, :, : queries.shape[1]]
            hidden_states, _ = block(
                hidden_states,
                conditioning,
                mask,
                position_embeddings,
                layer_past=cache,
                reader=None if readers is None else readers[index],
                **kwargs,
            )

        # By position again: this name depends on the version too
        return BaseModelOutputWithPast(self.output_layer(hidden_states, conditioning), cache)

    def check_length(self, past, length: int) -> None:
        """Raise ValueError if `length` tokens after `past` ones are more than `model_length`.

        A static cache counts its tokens in a tensor, which is not read.
        """
        known = past if isinstance(past, int) else 0
        if known + length > self.config.model_length:
            raise ValueError(
                f"The sequence has {past + length} tokens but model_length is {self.config.model_length}. Truncate it, "
                "or generate in blocks (block_length)."
            )

    def conditioning(
        self,
        timesteps: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
    ) -> torch.Tensor | None:
        """The conditioning vector c from sigma, None for a causal model.

        Returns:
            (B, cond_dim), or (1, cond_dim) for sigma = 0 where time is switched off.

        Raises:
            ValueError: `timesteps` is missing although the network is conditioned on time, or has a
                wrong shape.
        """
        if self.config.causal:
            return None
        device = inputs_embeds.device
        dtype = inputs_embeds.dtype

        # One row for all: sigma = 0
        if not self.config.time_conditioning:
            return self.sigma_map(torch.zeros(1, device=device), dtype)

        if timesteps is None:
            raise ValueError(
                "This model is conditioned on time (time_conditioning=True) but got timesteps=None. Pass the total "
                "noise sigma of each row, shape (B,): make_schedule(config.noise_schedule).total(t) at time t."
            )

        # (B,), or one sigma for all rows
        timesteps = torch.as_tensor(timesteps, device=device).reshape(-1)
        batch = len(inputs_embeds)
        if len(timesteps) not in (1, batch):
            raise ValueError(f"timesteps has {len(timesteps)} entries for {batch} rows. Pass one sigma per row.")
        return self.sigma_map(timesteps, dtype)


class MDLMHeadedModel(MDLMPreTrainedModel):
    """A trunk with its projection to the vocabulary, stored as `backbone.output_layer.linear`."""

    _tied_weights_keys = {"backbone.output_layer.linear.weight": "backbone.vocab_embed.embedding"}

    def __init__(self, config: MDLMConfig):
        super().__init__(config)
        self.backbone = MDLMModel(config)
        self.backbone.output_layer.linear = ZeroLinear(config.hidden_dim, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.backbone.vocab_embed

    def set_input_embeddings(self, value: nn.Embedding):
        self.backbone.vocab_embed = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.backbone.output_layer.linear

    def set_output_embeddings(self, value: nn.Linear):
        self.backbone.output_layer.linear = value

    def projection(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map from hidden states (..., H) to logits (..., V) in at least float32.

        It has this precision whatever the model's is, and under `torch.autocast` too. Weights in
        half precision are widened once, so keep the function for as long as it is used.
        """
        return wide_projection(self.get_output_embeddings())


__all__ = ["MDLMHeadedModel", "MDLMModel", "MDLMPreTrainedModel"]
