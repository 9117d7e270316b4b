"""The masked diffusion transformer of MDLM: trunk, denoiser and the causal baseline.

Modules have the names of the published checkpoints, so that `kuleshov-group/mdlm-owt` loads without
any renaming: `backbone.vocab_embed.embedding`, `backbone.blocks.0.attn_qkv.weight`,
`backbone.output_layer.linear.weight`, ...

Shapes: B rows, L positions, H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mdlm import MDLMConfig
from .draft_head import DraftHead, DraftHeadMixin
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
from .mdlm_pretrained import MDLMPreTrainedModel
from .positions import Positions
from .prefix_cache import given_cache, returned_cache
from .projection import wide_projection
from .vocabulary import not_emitted

register_fill_mask()


class MDLMModel(MDLMPreTrainedModel):
    """The trunk: token ids to hidden states after the final norm.

    Attention is bidirectional or `causal` as configured.
    """

    _auto_class = "AutoModel"
    _auto_map = {"AutoModel": "modeling_mdlm.MDLMModel"}

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
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
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


class MDLMForMaskedLM(DraftHeadMixin, MDLMHeadedModel, MaskedDiffusionGenerationMixin):
    """The denoiser of masked diffusion: logits of the clean tokens, given the noisy ones."""

    generation_config_class = EDLMGenerationConfig
    takes_positions = True  # `hidden_at`, where older code takes a mask alone
    _auto_class = "AutoModelForMaskedLM"
    _auto_map = MDLMModel._auto_map | {"AutoModelForMaskedLM": "modeling_mdlm.MDLMForMaskedLM"}

    def __init__(self, config: MDLMConfig):
        if config.causal:
            raise ValueError(
                "MDLMForMaskedLM is the bidirectional denoiser, but the configuration says causal=True. Use "
                "MDLMForCausalLM (AutoModelForCausalLM) for the autoregressive baseline, or set causal=False."
            )
        super().__init__(config)
        self.draft_head = None
        if config.draft_rank:
            self.draft_head = DraftHead(config.vocab_size, config.draft_rank)
            self.post_init()

    @classmethod
    def from_causal(cls, causal: "MDLMForCausalLM", **changes) -> "MDLMForMaskedLM":
        """A denoiser that starts from a causal model, as DiffuLLaMA does (arXiv 2410.17891).

        Embedding, blocks and head are copied. The modulations are new and start at shift 0, scale 0
        and gate 1: at first the network is the copied one with its attention in both directions.

        Args:
            changes: of the configuration (`cond_dim`, `time_conditioning`, `noise_schedule`,
                `dropout`).
        """
        # The configuration, with attention in both directions
        settings = causal.config.to_dict()
        settings.update({"architectures": None, "causal": False})
        settings.update(changes)
        model = cls(MDLMConfig(**settings)).to(causal.device, causal.dtype)
        model.load_state_dict(model.state_dict() | causal.state_dict())

        # A gate of zero would switch a branch off
        with torch.no_grad():
            for block in model.backbone.blocks:
                # (branch, shift | scale | gate, H)
                modulation = block.adaLN_modulation.bias.view(2, 3, -1)
                modulation[:, 2].fill_(1)
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
        logits_at: torch.Tensor | None = None,
        previous_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Raw logits (B, L, V), with one for the mask token.

        The arguments that are not listed are those of `MDLMModel`.

        Args:
            labels: (B, L) clean tokens, -100 where nothing is to be predicted. The loss is the mean
                cross-entropy of the SUBS log-probabilities (mask token impossible, visible tokens
                carried over) over the labelled positions. The weight 1/t of the likelihood bound
                belongs to the trainer.
            logits_at: (B, L) bool, the N positions whose logits (N, V) are wanted, all unless given.
            previous_ids: (N,) the tokens before these, whose term the draft head adds.

        Raises:
            ValueError: both `labels` and `logits_at`, `previous_ids` without a draft head, or what
                the trunk refuses.
        """
        if labels is not None and logits_at is not None:
            raise ValueError("The loss of labels needs all logits: give labels or logits_at, not both.")
        if previous_ids is not None and self.draft_head is None:
            raise ValueError("previous_ids needs a draft head: call add_draft_head(rank), or leave it out.")
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            timesteps=timesteps,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if logits_at is not None:
            hidden_states = hidden_states[logits_at]
        logits = self.get_output_embeddings()(hidden_states)
        if previous_ids is not None:
            logits = logits + self.draft_head(previous_ids).to(logits.device)

        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            loss = subs_cross_entropy(logits, labels, input_ids, self.config.mask_token_id)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def hidden_at(
        self,
        at: Positions | torch.Tensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (N, H) at N positions, or (B, L) bool, ready for `projection()`.

        Where they are few the last block computes no others.
        """
        at = Positions.of(at)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "timesteps": timesteps}
        # Q. Only these backends take a mask of Q x L.
        most_wanted = int(at.counts.max())
        selects_queries = self.config._attn_implementation in ("sdpa", "eager")
        if 2 * most_wanted > input_ids.shape[1] or not selects_queries:
            return at.take(self.backbone(**inputs, return_dict=True).last_hidden_state)

        # (B, Q): first the wanted positions of a row in their order, then any others
        queries = (~at.flags).long().argsort(dim=-1, stable=True)[:, :most_wanted]
        hidden = self.backbone(**inputs, queries=queries, return_dict=True).last_hidden_state
        is_wanted = torch.arange(most_wanted, device="cpu") < at.counts.unsqueeze(1)
        return Positions.known(is_wanted, hidden.device).take(hidden)


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
        """Next-token logits (B, L, V).

        The mask token and ids without a token are never text: their logits are the lowest finite
        number.

        Args:
            past_key_values: key/value cache.
            cache: the same under another name.
            labels: (B, L), shifted inside as usual. -100 is ignored.
            logits_to_keep: compute the logits of the last n positions alone (0: all positions), or
                at the given indices.
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
        # Logits of the positions that are kept
        kept = logits_to_keep
        if isinstance(logits_to_keep, int):
            kept = slice(-logits_to_keep, None)
        logits = self.get_output_embeddings()(outputs.last_hidden_state[:, kept])

        # A finite number, so that a loss with such a label stays finite
        vocab_size = logits.shape[-1]
        excluded = self.config.mask_token_id, self.config.absent_token_ids
        never_text = not_emitted(vocab_size, *excluded, device=logits.device)
        logits = logits.masked_fill(never_text, torch.finfo(logits.dtype).min)

        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss,
            logits,
            returned_cache(outputs),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MDLMPreTrainedModel", "MDLMModel", "MDLMForMaskedLM", "MDLMForCausalLM"]
