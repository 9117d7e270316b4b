"""The energy that a user passes to `generate(energy=...)` as a function."""

from collections.abc import Callable

import torch

from .energies import Candidates, Energy
from .masked_diffusion import at_least_float32
from .proposal import Proposal


class CallableEnergy(Energy):
    """The energies (R, k) that a function returns.

    It is called with candidate_ids (R, k, L), noisy_ids (R, L), log p_theta (R, k) and
    attention_mask (R, L). It gets copies, which it may change.

    Raises:
        ValueError: it is not callable, or does not return a tensor of shape (R, k).
    """

    def __init__(self, function: Callable):
        if isinstance(function, type) or not callable(function):
            kind = "class" if isinstance(function, type) else type(function).__name__
            raise ValueError(f"energy is a {kind}, but it must be a callable (see the docstring).")
        self.function = function

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        # Copies, which the function may change
        ids = candidates.ids
        noisy = proposal.ids
        log_p_theta = candidates.log_probs.sum(-1)  # (R, k)
        attention_mask = proposal.present
        energies = self.function(ids.clone(), noisy.clone(), log_p_theta, attention_mask.clone())

        # The energies take no part in gradients
        check_energies_of_function(energies, shape=tuple(ids.shape[:2]))
        return at_least_float32(energies.detach()).to(ids.device)


def check_energies_of_function(energies, shape: tuple[int, int]) -> None:
    """Raise ValueError unless a function returned a real tensor of the `shape` (R, k)."""
    needed = f"but a tensor of shape {shape} is needed."
    if not torch.is_tensor(energies):
        raise ValueError(f"energy returned {type(energies).__name__}, {needed}")

    given = tuple(energies.shape)
    if energies.is_complex():
        raise ValueError(f"energy returned {given} of {energies.dtype}, {needed}")
    if given != shape:
        raise ValueError(f"energy returned {given}, {needed}")
    if energies.device.type == "meta":
        raise ValueError("energy returned a tensor on the device `meta`, which holds no values.")
