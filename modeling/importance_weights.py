"""Self-normalised importance weights of candidates by their energies, as pure functions.

EDLM (arXiv 2410.21357), Algorithm 1, and docs/mathematics.md, section 4. Shapes: B rows, k
candidates.
"""

import torch

from .devices import double_where_possible

NOT_AN_ENERGY = "An energy is NaN or -inf. Energies are finite numbers, or +inf to reject a candidate."


def importance_weights(energies: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Self-normalised weights w_j proportional to exp(-E_j / tau) (Algorithm 1 of EDLM).

    Args:
        energies: (B, k), +inf to reject a candidate.
        temperature: tau in (0, inf].

    Returns:
        (B, k), float64 where the device has it.

    Raises:
        ValueError: an energy is NaN or -inf, all candidates of a row have energy +inf, or tau is
            not positive.
    """
    if not temperature > 0:
        raise ValueError(f"The energy temperature is {temperature!r}, but it must be positive.")
    energies = double_where_possible(energies)

    # Both flags are read at once
    is_allowed = (energies > -torch.inf).all()  # NaN compares false
    has_choice = (energies < torch.inf).any(-1).all()
    is_allowed, has_choice = torch.stack([is_allowed, has_choice]).tolist()
    if not is_allowed:
        raise ValueError(NOT_AN_ENERGY)
    if not has_choice:
        raise ValueError("All candidates of a row have energy +inf, so there is nothing to choose from.")
    return log_weights(energies, temperature).softmax(-1)


def log_weights(energies: torch.Tensor, temperature: float) -> torch.Tensor:
    """Unnormalised log w_j = -(E_j - min E) / tau (..., k), and -inf for E_j = +inf at any tau."""
    # The least energy has the weight 1. At tau = inf, inf / tau would be NaN.
    excess = energies - energies.amin(-1, keepdim=True)
    return torch.where(energies == torch.inf, -torch.inf, -excess / temperature)


def check_energies(energies: torch.Tensor) -> None:
    """Raise ValueError if an energy is NaN or -inf."""
    if not bool((energies > -torch.inf).all()):  # NaN compares false
        raise ValueError(NOT_AN_ENERGY)


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """1 / sum_j w_j^2 of weights (B, k): from 1 (one has all the weight) to k (all are equal): (B,)."""
    return 1 / weights.square().sum(-1)
