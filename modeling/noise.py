"""The random numbers of one call: a single source, read in the order in which they are needed.

Likelihoods have a source with the same methods, in which every row has its own numbers.
"""

from dataclasses import dataclass

import torch

from .masked_diffusion import uniform
from .positions import Positions


@dataclass(frozen=True)
class Noise:
    """Uniforms on [0, 1), float64, from one `generator` (the global one of torch unless given).

    Every method gets the indices `rows` (R,) of the rows that need numbers. They do not matter
    here, but a source with numbers for every row looks them up.
    """

    generator: torch.Generator | None = None

    def per_position(self, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """One uniform per position of `where` (R, L) bool: (R, L). Only the True ones count."""
        return uniform(where.shape, where.device, self.generator)

    def per_draw(self, rows: torch.Tensor, where: Positions, k: int) -> torch.Tensor:
        """k uniforms for each of the N positions `where`: (N, k)."""
        return uniform((len(where), k), where.flags.device, self.generator)

    def per_row(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One uniform per row: (R, 1)."""
        return uniform((len(rows), 1), device, self.generator)
