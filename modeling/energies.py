"""Residual energies E(x_0, x_t), low = likely (EDLM, arXiv 2410.21357, section 4).

p(x_0 | x_t) = p_theta(x_0 | x_t) exp(-E(x_0, x_t)) / Z(x_t)

An energy is an object that is called with candidates
and the proposal they come from. Every kind has a file of its own: autoregressive_energy.py,
noise_contrastive_energy.py, callable_energy.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .positions import Positions
from .proposal import Proposal


@dataclass(frozen=True)
class Candidates:
    """k candidates for the clean text of each of R rows.

    Args:
        ids: (R, k, L). With the scope `revealed`, positions outside the reveal set hold the mask.
        log_probs: (R, k, L) log p_theta of the tokens that were proposed, 0 elsewhere. None where
            no energy needs them.
    """

    ids: torch.LongTensor
    log_probs: torch.Tensor | None = None

    @classmethod
    def filled(
        cls,
        noisy: torch.LongTensor,
        at: Positions,
        tokens: torch.LongTensor,
        log_probs: torch.Tensor,
    ) -> "Candidates":
        """Fill k copies of `noisy` (R, L) with tokens and log-probabilities, both (N, k), at N positions."""
        zeros = torch.zeros_like(noisy, dtype=log_probs.dtype)
        return cls(fill(noisy, at, tokens), fill(zeros, at, log_probs))


class Energy(ABC):
    """E(x_0, x_t) of candidates. A new kind of energy is one class."""

    @abstractmethod
    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        """The energies (R, k), in at least float32."""

    def target(self):
        """The model that speculative sampling can draw from, None for most energies."""
        return None


def fill(base: torch.Tensor, at: Positions, values: torch.Tensor) -> torch.Tensor:
    """Fill k copies of `base` (R, L) with `values` (N, k) at N positions: (R, k, L)."""
    # (R, L, k): row and position first, as in `values`
    copies = base.unsqueeze(-1).expand(-1, -1, values.shape[1])
    return at.put(copies, values).transpose(1, 2).contiguous()
