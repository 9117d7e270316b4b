"""The autoregressive energies of EDLM (arXiv 2410.21357, section 4.1), from any causal language model.

ar:    E(x_0, x_t) = -log p_AR(x_0)            + log p_theta(x_0 | x_t)
coar:  E(x_0, x_t) = -sum_{i in M} log p_AR(x_0^i | x_0^{<i}) + log p_theta(x_0 | x_t)
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import logging

from .causal_log_probs import StartToken, autoregressive_log_probs
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
        config: of the composite: says whether visible tokens count (`ar`) or not (`coar`), and what is never text.
        scope: `revealed` takes both terms over the reveal set alone, for `ar` and `coar` alike. The reveal set must
            then be the next block of the text.
        chunk_size: candidates per call of the model; bounded by memory unless given.
    """

    causal_lm: nn.Module
    config: EDLMConfig
    scope: str = "sequence"
    chunk_size: int | None = None

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        ids, noisy, real = candidates.ids, proposal.ids, proposal.present.bool()

        # 1. Positions (R, L) whose tokens have a part in log p_theta, and in log p_AR
        masked = revealed = proposal.masked
        if self.scope == "revealed":
            revealed = revealed_block(ids, masked, real, self.config.mask_token_id)
        whole = self.config.energy_type == "ar" and self.scope == "sequence"
        counted = real if whole else revealed

        # 2. log p_AR (R, k, L). A mask stands after all that is scored of a row: any id will do there.
        config = self.config
        first = real.long().argmax(-1, keepdim=True)
        start = self.start_token(noisy.gather(1, first).squeeze(1))
        log_p_ar = autoregressive_log_probs(
            self.causal_lm,
            ids.masked_fill(ids == config.mask_token_id, 0),
            counted,
            not_emitted(proposal.vocab_size, config.mask_token_id, config.absent_token_ids),
            start=start,
            attention_mask=proposal.attention_mask,
            chunk_size=self.chunk_size,
        )
        dtype = torch.promote_types(log_p_ar.dtype, candidates.log_probs.dtype)
        log_p_ar = log_p_ar.to(dtype)
        log_p_theta = candidates.log_probs.to(dtype)

        # 3. Without a start token nothing scores the first token: it keeps the proposal's probability, which cancels.
        if start is None:
            self.warn_without_start()
            at_first = counted & (torch.arange(noisy.shape[1], device=first.device) == first)
            log_p_ar = torch.where(at_first.unsqueeze(1), log_p_theta, log_p_ar)

        # 4. E = log p_theta - log p_AR. An impossible text is rejected.
        log_p_theta = torch.where(revealed.unsqueeze(1), log_p_theta, 0).sum(-1)
        log_p_ar = log_p_ar.sum(-1)
        return torch.where(log_p_ar == -torch.inf, torch.inf, log_p_theta - log_p_ar)

    def start_token(self, first_tokens: torch.LongTensor) -> StartToken | None:
        """A row whose visible first token (R,) is the start token needs no other in front."""
        token_id = start_token(getattr(self.causal_lm, "config", None))
        if token_id is None:
            return None
        return StartToken(token_id, (first_tokens != token_id) | (first_tokens == self.config.mask_token_id))

    def warn_without_start(self) -> None:
        if self.config.energy_type == "ar":
            logger.warning_once(
                "The autoregressive energy model has no bos_token_id, so the first token keeps the law of the "
                "proposal and the energy is approximate. Set energy_model.config.bos_token_id if it has one."
            )


def revealed_block(
    candidate_ids: torch.Tensor, masked: torch.Tensor, real: torch.Tensor, mask_token_id: int
) -> torch.Tensor:
    """The revealed positions (R, L), in every row a contiguous block between a visible prefix and a masked suffix.

    Args:
        candidate_ids: (R, k, L), the mask where nothing is revealed. masked, real: (R, L) bool.

    Raises:
        ValueError: they are not, so that an autoregressive model cannot score them by themselves; or the candidates of
            a row reveal different positions.
    """
    hidden = (candidate_ids == mask_token_id) & masked.unsqueeze(1)
    if (hidden != hidden[:, :1]).any():
        raise ValueError("The candidates of a row reveal different positions. Energies compare those of one step.")
    hidden = hidden[:, 0]
    revealed = masked & ~hidden
    some = revealed.any(-1, keepdim=True)

    # From the first revealed position on, and after the last one
    started = revealed.long().cumsum(-1) > 0
    ended = revealed.long().flip(-1).cumsum(-1).flip(-1) == 0
    gap = started & ~ended & ~revealed
    out_of_order = started & ended & ~hidden
    if ((masked & ~started & some) | ((gap | out_of_order) & real)).any():
        raise ValueError(
            "An AR energy with energy_scope='revealed' needs every step to reveal the next tokens of the text, left to "
            "right. Use max_denoising_steps=1 with block_length, or energy_scope='sequence'."
        )
    return revealed
