"""The energy that a network trained by noise-contrastive estimation gives (EDLM, arXiv 2410.21357, section 4.2)."""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_edlm import EDLMConfig
from .energies import Candidates, Energy
from .masked_diffusion import at_least_float32
from .proposal import Proposal

# Activations of one call of the network
MOST_BYTES = 2**28


@dataclass(frozen=True)
class NoiseContrastiveEnergy(Energy):
    """E of candidates by a network over [x_t; x_0], in chunks.

    Args:
        network: called as `network(candidates, noisy, attention_mask=..., timesteps=...)`, returns `.energy`.
        config: of the composite.
        chunk_size: candidates per call of the network; bounded by memory unless given.
    """

    network: nn.Module
    config: EDLMConfig
    chunk_size: int | None = None

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        batch, k, length = candidates.ids.shape
        size = self.chunk_size
        if size is None:
            size = max(1, MOST_BYTES // (4 * 32 * length * (self.config.hidden_size or 1024)))

        energies = []
        for rows in torch.arange(batch, device=candidates.ids.device).split(size):
            mask = None if proposal.attention_mask is None else proposal.attention_mask[rows]
            sigma = proposal.timesteps
            if sigma is not None and sigma.numel() > 1:
                sigma = sigma[rows]

            # (R, some candidates, L) at a time
            parts = candidates.ids[rows].split(max(1, size // len(rows)), dim=1)
            noisy = proposal.ids[rows]
            of_rows = [self.network(part, noisy, attention_mask=mask, timesteps=sigma).energy for part in parts]
            energies.append(torch.cat(of_rows, dim=1))
        return at_least_float32(torch.cat(energies))
