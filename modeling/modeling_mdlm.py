"""The denoiser of masked diffusion: the transformer of MDLM with logits of the clean tokens, and `generate()`.

Shapes: B rows, L positions, H hidden, V vocabulary.
"""

import torch
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .configuration_mdlm import MDLMConfig
from .draft_head import DraftHeadMixin
from .fill_mask import register_fill_mask
from .generation_edlm import EDLMGenerationConfig, MaskedDiffusionGenerationMixin
from .masked_diffusion import subs_cross_entropy
from .mdlm_trunk import MDLMHeadedModel, MDLMModel
from .positions import Positions

register_fill_mask()


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
        self.make_draft_heads()
        if config.draft_width:
            self.post_init()

    @classmethod
    def from_causal(cls, causal: MDLMHeadedModel, **changes) -> "MDLMForMaskedLM":
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
        target_hidden: torch.Tensor | None = None,
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
            previous_ids: (N, 2) the two tokens before these, by which the draft head corrects the
                logits (`hidden_of_drafts`).
            target_hidden: (B, G) the target's states before the first of these positions of every row,
                by which the logits of that one are corrected instead.

        Raises:
            ValueError: both `labels` and `logits_at`, `previous_ids` or `target_hidden` without the
                head that reads them, or what the trunk refuses.
        """
        if labels is not None and logits_at is not None:
            raise ValueError("The loss of labels needs all logits: give labels or logits_at, not both.")
        if previous_ids is not None and self.draft_head is None:
            raise ValueError("previous_ids needs a draft head: call add_draft_head(width), or leave it out.")
        if target_hidden is not None and (self.first_draft is None or previous_ids is None or logits_at is None):
            raise ValueError(
                "target_hidden needs logits_at, previous_ids and a head of the first draft: call "
                "add_first_draft(target_dim), or leave it out."
            )
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            timesteps=timesteps,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        # (B, L, H), or (N, H) at the wanted positions
        hidden_states = outputs.last_hidden_state
        if logits_at is not None:
            hidden_states = hidden_states[logits_at]
        if previous_ids is not None:
            corrected = self.hidden_of_drafts(hidden_states, previous_ids)
            if target_hidden is not None:
                # (N,): the first position of every row
                is_first = (logits_at.cumsum(-1) == 1)[logits_at]
                rows = logits_at.any(-1)
                of_first = (hidden_states[is_first], previous_ids[is_first], target_hidden[rows])
                corrected[is_first] = self.hidden_of_drafts(*of_first).to(corrected)
            hidden_states = corrected
        logits = self.get_output_embeddings()(hidden_states)

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
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "timesteps": timesteps,
            "return_dict": True,
        }

        # Q. Only these backends take a mask of Q x L.
        most_wanted = int(at.counts.max())
        are_few = 2 * most_wanted <= input_ids.shape[1]
        selects_queries = self.config._attn_implementation in ("sdpa", "eager")
        if not are_few or not selects_queries:
            hidden = self.backbone(**inputs).last_hidden_state
            return at.take(hidden)

        # (B, Q): first the wanted positions of a row in their order, then any others
        order = (~at.flags).long().argsort(dim=-1, stable=True)
        queries = order[:, :most_wanted]
        hidden = self.backbone(**inputs, queries=queries).last_hidden_state

        # Of the (B, Q, H) states those at the wanted positions
        numbers = torch.arange(most_wanted, device="cpu")
        is_wanted = numbers < at.counts.unsqueeze(1)
        return Positions.known(is_wanted, hidden.device).take(hidden)


__all__ = ["MDLMForMaskedLM"]
