"""The autoregressive baseline of MDLM: its transformer, made causal.

Shapes: B rows, L positions, V vocabulary.
"""

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_mdlm import MDLMConfig
from .mdlm_trunk import MDLMHeadedModel, MDLMModel
from .prefix_cache import given_cache, returned_cache
from .vocabulary import not_emitted


class MDLMForCausalLM(MDLMHeadedModel, GenerationMixin):
    """The paper's autoregressive baseline: the same transformer, causal, without conditioning."""

    accepts_loss_kwargs = True
    _composite_part = "energy_model"
    _composite_part_is_causal = True
    _auto_class = "AutoModelForCausalLM"
    _auto_map = MDLMModel._auto_map | {"AutoModelForCausalLM": "modeling_mdlm_causal.MDLMForCausalLM"}

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


__all__ = ["MDLMForCausalLM"]
