"""Autoregressive energies from any causal language model (EDLM, arXiv 2410.21357, section 4.1).

ar:    E(x_0, x_t) = log p_theta(x_0 | x_t) - log p_AR(x_0)
coar:  E(x_0, x_t) = log p_theta(x_0 | x_t) - sum_{i in M} log p_AR(x_0^i | x_0^{<i})
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import logging

from .autoregressive_target import AutoregressiveTarget
from .causal_log_probs import autoregressive_log_probs
from .causal_texts import StartToken
from .configuration_edlm import EDLMConfig
from .energies import Candidates, Energy
from .network_facts import start_token
from .proposal import Proposal
from .vocabulary import not_emitted

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class AutoregressiveEnergy(Energy):
    """E of candidates under a causal language model.

    Args:
        causal_lm: the model.
        config: of the composite. It says whether visible tokens count (`ar`) or not (`coar`), and
            which ids are never text.
        scope: `revealed` takes both terms over the reveal set alone, for `ar` and `coar` alike. The
            reveal set must then be the next block of the text.
        chunk_size: candidates per call of the model, bounded by memory unless given.
    """

    causal_lm: nn.Module
    config: EDLMConfig
    scope: str = "sequence"
    chunk_size: int | None = None

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        ids = candidates.ids  # (R, k, L)
        noisy = proposal.ids  # (R, L)
        present = proposal.present.bool()
        mask_token_id = self.config.mask_token_id

        # 1. Positions (R, L) whose tokens have a part in log p_theta, and in log p_AR
        revealed = proposal.masked
        if self.scope == "revealed":
            revealed = revealed_block(ids, proposal.masked, present, mask_token_id)
        counts_visible = self.config.energy_type == "ar" and self.scope == "sequence"
        scored = present if counts_visible else revealed

        # 2. log p_AR (R, k, L). A mask that is left stands after all that is scored in its row, so
        #    any id will do there.
        first = present.long().argmax(-1, keepdim=True)
        start = self.start_token(noisy.gather(1, first).squeeze(1))
        log_p_ar = autoregressive_log_probs(
            self.causal_lm,
            ids.masked_fill(ids == mask_token_id, 0),
            scored,
            not_emitted(proposal.vocab_size, mask_token_id, self.config.absent_token_ids),
            start=start,
            attention_mask=proposal.attention_mask,
            chunk_size=self.chunk_size,
        )
        dtype = torch.promote_types(log_p_ar.dtype, candidates.log_probs.dtype)
        log_p_ar = log_p_ar.to(dtype)
        log_p_theta = candidates.log_probs.to(dtype)

        # 3. Without a start token nothing scores the first token of a text. It keeps the
        #    probability of the proposal, which cancels.
        if start is None:
            self.warn_without_start()
            columns = torch.arange(noisy.shape[1], device=first.device)
            unscored = scored & (columns == first)
            log_p_ar = torch.where(unscored.unsqueeze(1), log_p_theta, log_p_ar)

        # 4. E = log p_theta - log p_AR (R, k). An impossible text is rejected.
        log_p_theta = torch.where(revealed.unsqueeze(1), log_p_theta, 0).sum(-1)
        log_p_ar = log_p_ar.sum(-1)
        return torch.where(log_p_ar == -torch.inf, torch.inf, log_p_theta - log_p_ar)

    def target(self) -> AutoregressiveTarget:
        """p_AR of the model, for speculative sampling."""
        return AutoregressiveTarget(self.causal_lm, self.config, self.start_token)

    def start_token(self, first_tokens: torch.LongTensor) -> StartToken | None:
        """The start token of the model, None for a model without one.

        Args:
            first_tokens: (R,). A row whose first token is visible and is the start token needs no
                other in front.
        """
        token_id = start_token(getattr(self.causal_lm, "config", None))
        if token_id is None:
            return None
        is_masked = first_tokens == self.config.mask_token_id
        return StartToken(token_id, needed=(first_tokens != token_id) | is_masked)

    def warn_without_start(self) -> None:
        """Warn once that an `ar` energy without a start token is approximate."""
        if self.config.energy_type == "ar":
            logger.warning_once(
                "The autoregressive energy model has no bos_token_id, so the first token keeps the "
                "distribution of the proposal and the energy is approximate. Set "
                "energy_model.config.bos_token_id if it has one."
            )


def revealed_block(
    candidate_ids: torch.Tensor,
    masked: torch.Tensor,
    present: torch.Tensor,
    mask_token_id: int,
) -> torch.Tensor:
    """The revealed positions (R, L): in every row a block after a visible prefix, then only masks.

    Args:
        candidate_ids: (R, k, L), the mask where nothing is revealed.
        masked: (R, L) bool, the masks before the step.
        present: (R, L) bool, False at padding.

    Raises:
        ValueError: the revealed positions are no such block, so that an autoregressive model cannot
            score them by themselves, or the candidates of a row reveal different positions.
    """
    # (R, k, L), then (R, L) since all candidates of a row agree
    still_masked = (candidate_ids == mask_token_id) & masked.unsqueeze(1)
    if (still_masked != still_masked[:, :1]).any():
        raise ValueError("The candidates of a row reveal different positions. Energies compare those of one step.")
    still_masked = still_masked[:, 0]
    revealed = masked & ~still_masked

    # From the first revealed position on, and after the last one
    flags = revealed.long()
    started = flags.cumsum(-1) > 0
    num_from_here = flags.flip(-1).cumsum(-1).flip(-1)
    ended = num_from_here == 0

    # Masks before the block, positions inside it that are not revealed, visible tokens after it
    reveals_something = revealed.any(-1, keepdim=True)
    masked_before = masked & ~started & reveals_something
    gaps = started & ~ended & ~revealed & present
    visible_after = started & ended & ~still_masked & present
    if (masked_before | gaps | visible_after).any():
        raise ValueError(
            "An AR energy with energy_scope='revealed' needs every step to reveal the next tokens of the text, left to "
            "right. Use max_denoising_steps=1 with block_length, or energy_scope='sequence'."
        )
    return revealed
