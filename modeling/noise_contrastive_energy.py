"""The energy of a network that was trained by noise-contrastive estimation.

Source: EDLM (arXiv 2410.21357), section 4.2.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_edlm import EDLMConfig
from .energies import Candidates, Energy
from .masked_diffusion import at_least_float32
from .network_facts import on_device_of
from .network_probes import timesteps_of_rows
from .proposal import Proposal

# The activations of one call of the network: so many bytes at most, and so many floats for every
# position and hidden unit.
MAX_ACTIVATION_BYTES = 2**28
FLOATS_PER_HIDDEN_UNIT = 32


@dataclass(frozen=True)
class NoiseContrastiveEnergy(Energy):
    """E of candidates by a network over [x_t; x_0], in chunks.

    Args:
        network: called as `network(candidates, noisy, attention_mask=..., timesteps=...)`. It
            returns an output with `.energy`.
        config: of the composite.
        chunk_size: candidates per call of the network, bounded by memory unless given.
    """

    network: nn.Module
    config: EDLMConfig
    chunk_size: int | None = None

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        batch, _, length = candidates.ids.shape
        chunk_size = self.chunk_size or self.affordable_candidates(length)

        # The network may have a device of its own
        candidate_ids, noisy_ids, attention_mask, sigma = on_device_of(
            self.network,
            candidates.ids,
            proposal.ids,
            proposal.attention_mask,
            proposal.timesteps,
        )

        energies = []
        for begin in range(0, batch, chunk_size):
            rows = slice(begin, begin + chunk_size)
            ids_of_rows = candidate_ids[rows]
            noisy = noisy_ids[rows]
            conditions = {
                "attention_mask": None if attention_mask is None else attention_mask[rows],
                "timesteps": timesteps_of_rows(sigma, rows),
            }

            # All rows of a chunk, and as many candidates of each as fit: (rows, <= k, L) at a time
            energies_of_rows = []
            for ids in ids_of_rows.split(max(1, chunk_size // len(ids_of_rows)), dim=1):
                energies_of_rows.append(self.network(ids, noisy, **conditions).energy)
            energies.append(torch.cat(energies_of_rows, dim=1))
        return at_least_float32(torch.cat(energies)).to(candidates.ids.device)

    def affordable_candidates(self, length: int) -> int:
        """How many candidates of `length` tokens one call may have."""
        width = self.config.hidden_size or 1024
        bytes_per_candidate = 4 * FLOATS_PER_HIDDEN_UNIT * length * width
        return max(1, MAX_ACTIVATION_BYTES // bytes_per_candidate)
