"""The random numbers of a call: one source for times, tokens and choices, drawn in the order in which they are needed.

Likelihoods have a source of their own with the same methods, in which every row has its own numbers.
"""

from dataclasses import dataclass

import torch

from .masked_diffusion import uniform


@dataclass(frozen=True)
class Noise:
    """Uniforms on [0, 1), float64, from one `generator` (torch's global one unless given).

    Every method is told the indices `rows` (R,) of the rows that it draws for.
    """

    generator: torch.Generator | None = None

    def per_position(self, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """One uniform for every position of `where` (R, L) bool: (R, L), of which only those at `where` count."""
        return uniform(where.shape, where.device, self.generator)

    def per_draw(self, rows: torch.Tensor, where: torch.Tensor, k: int) -> torch.Tensor:
        """k uniforms for each of the N True positions of `where` (R, L) bool: (N, k)."""
        return uniform((int(where.sum()), k), where.device, self.generator)

    def per_row(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One uniform for every row: (R, 1)."""
        return uniform((len(rows), 1), device, self.generator)
