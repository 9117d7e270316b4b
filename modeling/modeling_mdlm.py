"""The masked diffusion transformer of MDLM: trunk, denoiser and the causal baseline.

Module names are those of the published checkpoints, so `kuleshov-group/mdlm-owt` loads without any renaming:
`backbone.vocab_embed.embedding`, `backbone.blocks.0.attn_qkv.weight`, `backbone.output_layer.linear.weight`, ...
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .checkpoints import CheckpointingMixin, check_loaded_keys, composite_part, set_auto_map
from .configuration_mdlm import MDLMConfig
from .fill_mask import register_fill_mask
from .generation_edlm import EDLMGenerationConfig, MaskedDiffusionGenerationMixin
from .masked_diffusion import subs_cross_entropy
from .mdlm_blocks import (
    BlockReader,
    MDLMBlock,
    MDLMEmbedding,
    MDLMOutputLayer,
    MDLMSigmaMap,
    ZeroLinear,
    rotary_cos_sin,
)
from .network_facts import device_of
from .prefix_cache import CACHE_NAMES, given_cache, returned_cache
from .projection import wide_projection
from .vocabulary import not_emitted

register_fill_mask()


class MDLMPreTrainedModel(CheckpointingMixin, PreTrainedModel):
    config: MDLMConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["MDLMBlock"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(MDLMBlock, index=0),
        "attentions": OutputRecorder(MDLMBlock, index=1),
    }
    # Published files store the rotary frequencies; here they are computed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]
    # Where a saved EDLM composite holds this model, so that it can be loaded out of one.
    _composite_part = "denoiser"
    _composite_part_is_causal = False
    _auto_map = {}

    @property
    def device(self) -> torch.device:
        """Where the network computes, also while its weights are offloaded."""
        return device_of(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As published: torch's own for linear layers, zero for modulations and final projections."""
        if isinstance(module, ZeroLinear):
            initialization.zeros_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if getattr(module, "bias", None) is not None:
                bound = 1 / math.sqrt(module.in_features)
                initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """`PreTrainedModel.from_pretrained` that also reads the part of a saved EDLM composite, and that is strict.

        Raises:
            ValueError: the file lacks a weight of the model or has one too many. Loading the trunk from a headed
                checkpoint, or a headed model from a trunk, stays allowed.
        """
        part = {}
        if pretrained_model_name_or_path is not None:
            part = composite_part(cls, pretrained_model_name_or_path, kwargs)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **(kwargs | part)
        )
        if pretrained_model_name_or_path is not None:
            check_loaded_keys(model, info, pretrained_model_name_or_path, of_composite=bool(part))
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained` with the code beside the weights, for `trust_remote_code=True`."""
        set_auto_map(self)
        super().save_pretrained(save_directory, *args, **kwargs)


class MDLMModel(MDLMPreTrainedModel):
    """The trunk: token ids to hidden states after the final norm, bidirectional or `causal` as configured."""

    _auto_class = "AutoModel"
    _auto_map = {"AutoModel": "modeling_mdlm.MDLMModel"}

    def __init__(self, config: MDLMConfig):
        super().__init__(config)
        self.vocab_embed = MDLMEmbedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = None if config.causal else MDLMSigmaMap(config.cond_dim)
        self.blocks = nn.ModuleList([MDLMBlock(config, layer_idx) for layer_idx in range(config.n_blocks)])
        self.output_layer = MDLMOutputLayer(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.vocab_embed

    def set_input_embeddings(self, value: nn.Embedding):
        self.vocab_embed = value

    def conditioning(self, timesteps: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
        """The conditioning vector c: (B, cond_dim) from sigma; (1, cond_dim), for sigma = 0, when time is switched off.

        Raises:
            ValueError: `timesteps` is missing although the network is conditioned on time, or has a wrong shape.
        """
        if self.config.causal:
            return None
        batch, device, dtype = len(inputs_embeds), inputs_embeds.device, inputs_embeds.dtype
        if not self.config.time_conditioning:
            return self.sigma_map(torch.zeros(1, device=device), dtype)
        if timesteps is None:
            raise ValueError(
                "This model is conditioned on time (time_conditioning=True) but got timesteps=None. Pass the total "
                "noise sigma of each row, shape (B,): make_schedule(config.noise_schedule).total(t) at time t."
            )
        timesteps = torch.as_tensor(timesteps, device=device).reshape(-1)
        if timesteps.shape[0] not in (1, batch):
            raise ValueError(f"timesteps has {timesteps.shape[0]} entries for {batch} rows. Pass one sigma per row.")
        return self.sigma_map(timesteps, dtype)

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
        """Hidden states (B, L, hidden_dim) after the final norm and its modulation, ready for a projection.

        Args:
            input_ids: (B, L) token ids; or give `inputs_embeds` (B, L, hidden_dim).
            attention_mask: (B, L), 0 at padding, which then takes part in nothing; with a cache (B, past + L).
            timesteps: (B,) total noise sigma (not the diffusion time t); needed with `time_conditioning` only.
            position_ids: (B, L); counted over the non-padding tokens unless given.
            past_key_values, cache: key/value cache under either of its names, causal models only.
            queries: (B, Q) positions whose states are wanted, unless all: (B, Q, hidden_dim) comes back, and the last
                block computes no others. Bidirectional models only.
            readers: one for each block, of a network that runs this trunk with linear layers of its own.

        Raises:
            ValueError: not exactly one of the two inputs, a sequence longer than `model_length`, missing timesteps, or
                a cache given to a bidirectional model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.vocab_embed(input_ids)
        cache = given_cache(cache, past_key_values)
        if cache is not None and not self.config.causal:
            raise ValueError("A bidirectional model has no key/value cache: call it without one.")
        if use_cache and self.config.causal and cache is None:
            cache = DynamicCache(config=self.config)
        batch, length = inputs_embeds.shape[:2]
        past = cache.get_seq_length() if cache is not None else 0
        if (past if isinstance(past, int) else 0) + length > self.config.model_length:
            raise ValueError(
                f"The sequence has {past + length} tokens but model_length is {self.config.model_length}. Truncate it, "
                "or generate in blocks (block_length)."
            )
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
        elif position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device).unsqueeze(0) + past

        if self.config.causal:  # by position: what the cache is called there depends on the version
            mask = create_causal_mask(self.config, inputs_embeds, attention_mask, cache)
        else:
            mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
        conditioning = self.conditioning(timesteps, inputs_embeds)
        position_embeddings = rotary_cos_sin(
            position_ids, self.config.hidden_dim // self.config.n_heads, inputs_embeds.dtype
        )
        hidden_states = inputs_embeds
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - 1 and queries is not None:
                kwargs["queries"] = queries
                if mask is not None:
                    mask = mask[:, :, : queries.shape[1]]  # padding is hidden from every query alike
            hidden_states, _ = block(
                hidden_states,
                conditioning,
                mask,
                position_embeddings,
                layer_past=cache,
                reader=None if readers is None else readers[index],
                **kwargs,
            )
        return BaseModelOutputWithPast(self.output_layer(hidden_states, conditioning), cache)


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
        """The map from hidden states (..., H) to logits (..., V) in at least float32, whatever the model's precision.

        So it is under `torch.autocast`. Half-precision weights are widened once, so keep the function for as long as it
        is used.
        """
        return wide_projection(self.get_output_embeddings())


class MDLMForMaskedLM(MDLMHeadedModel, MaskedDiffusionGenerationMixin):
    """The denoiser of masked diffusion: logits of the clean tokens at every position, given the noisy ones."""

    generation_config_class = EDLMGenerationConfig
    _auto_class = "AutoModelForMaskedLM"
    _auto_map = MDLMModel._auto_map | {"AutoModelForMaskedLM": "modeling_mdlm.MDLMForMaskedLM"}

    def __init__(self, config: MDLMConfig):
        if config.causal:
            raise ValueError(
                "MDLMForMaskedLM is the bidirectional denoiser, but the configuration says causal=True. Use "
                "MDLMForCausalLM (AutoModelForCausalLM) for the autoregressive baseline, or set causal=False."
            )
        super().__init__(config)

    @classmethod
    def from_causal(cls, causal: "MDLMForCausalLM", **changes) -> "MDLMForMaskedLM":
        """A denoiser that starts from the weights of an `MDLMForCausalLM` (as DiffuLLaMA does, arXiv 2410.17891).

        Embedding, blocks and head are copied; the modulations are new and start at shift 0, scale 0 and gate 1, so
        that at first the network is the copied one with its attention in both directions.

        Args:
            changes: of the configuration (`cond_dim`, `time_conditioning`, `noise_schedule`, `dropout`).
        """
        config = MDLMConfig(**(causal.config.to_dict() | {"architectures": None, "causal": False} | changes))
        model = cls(config).to(causal.device, causal.dtype)
        model.load_state_dict(model.state_dict() | causal.state_dict())
        with torch.no_grad():
            for block in model.backbone.blocks:
                gates = block.adaLN_modulation.bias.view(2, 3, -1)[:, 2]  # (branch, shift | scale | gate, H)
                gates.fill_(1)
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Raw logits (B, L, V), the mask token's among them.

        Args:
            input_ids, attention_mask, timesteps, position_ids, inputs_embeds: as for `MDLMModel`.
            labels: (B, L) clean tokens, -100 where nothing is to be predicted. The loss is the mean cross-entropy of
                the SUBS log-probabilities (mask token impossible, visible tokens carried over) over the labelled
                positions; the weight 1/t of the likelihood bound belongs to the trainer.
        """
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            timesteps=timesteps,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.get_output_embeddings()(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = subs_cross_entropy(logits, labels.to(logits.device), input_ids, self.config.mask_token_id)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def hidden_at(
        self, at: torch.Tensor, input_ids: torch.LongTensor, attention_mask=None, timesteps=None
    ) -> torch.Tensor:
        """Hidden states (N, H) at the N positions `at` (B, L) bool, which `projection()` maps to logits.

        Where they are few the last block computes no others.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "timesteps": timesteps}
        count = at.sum(-1)
        most = int(count.max())
        if 2 * most > at.shape[1] or self.config._attn_implementation not in ("sdpa", "eager"):
            return self.backbone(**inputs, return_dict=True).last_hidden_state[at]

        # (B, most): first the wanted positions of a row in their order, then any others
        queries = (~at).long().argsort(dim=-1, stable=True)[:, :most]
        hidden = self.backbone(**inputs, queries=queries, return_dict=True).last_hidden_state
        wanted = torch.arange(most, device=count.device) < count.unsqueeze(1)
        return hidden[wanted]


class MDLMForCausalLM(MDLMHeadedModel, GenerationMixin):
    """The paper's autoregressive baseline: the same transformer, causal, without conditioning."""

    accepts_loss_kwargs = True
    _composite_part = "energy_model"
    _composite_part_is_causal = True
    _auto_class = "AutoModelForCausalLM"
    _auto_map = MDLMModel._auto_map | {"AutoModelForCausalLM": "modeling_mdlm.MDLMForCausalLM"}

    def __init__(self, config: MDLMConfig):
        if not config.causal:
            raise ValueError(
                "MDLMForCausalLM is the autoregressive baseline, but the configuration says causal=False. Use "
                "MDLMForMaskedLM (AutoModelForMaskedLM) for the denoiser, or set causal=True."
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, L, V), the lowest finite number where no text is: the mask token, ids without a token.

        Args:
            past_key_values, cache: key/value cache under either of its names.
            labels: (B, L), shifted inside as usual; -100 is ignored.
            logits_to_keep: compute the logits of the last n positions only (0: all), or of the given indices.
        """
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(outputs.last_hidden_state[:, kept])
        excluded = self.config.mask_token_id, self.config.absent_token_ids
        never_text = not_emitted(logits.shape[-1], *excluded, device=logits.device)
        logits = logits.masked_fill(never_text, torch.finfo(logits.dtype).min)
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss,
            logits,
            returned_cache(outputs),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MDLMPreTrainedModel", "MDLMModel", "MDLMForMaskedLM", "MDLMForCausalLM"]
