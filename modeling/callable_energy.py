"""The energy that a user passes to `generate(energy=...)` as a function."""

from collections.abc import Callable

import torch

from .energies import Candidates, Energy
from .masked_diffusion import at_least_float32
from .proposal import Proposal


class CallableEnergy(Energy):
    """A function (candidate_ids (R, k, L), noisy_ids (R, L), log p_theta (R, k), attention_mask (R, L)) -> (R, k).

    It gets copies, which it may change.

    Raises:
        ValueError: it is not callable, or does not return a tensor of shape (R, k).
    """

    def __init__(self, function: Callable):
        if isinstance(function, type) or not callable(function):
            kind = "class" if isinstance(function, type) else type(function).__name__
            raise ValueError(f"energy is a {kind}, but it must be a callable (see the docstring).")
        self.function = function

    def __call__(self, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
        ids = candidates.ids
        log_p_theta = candidates.log_probs.sum(-1)
        energies = self.function(ids.clone(), proposal.ids.clone(), log_p_theta, proposal.present.clone())

        is_tensor, needed = torch.is_tensor(energies), tuple(ids.shape[:2])
        if not is_tensor or tuple(energies.shape) != needed or energies.is_complex():
            given = f"{tuple(energies.shape)}" if is_tensor else type(energies).__name__
            given += f" of {energies.dtype}" if is_tensor and energies.is_complex() else ""
            raise ValueError(f"energy returned {given}, but a tensor of shape {needed} is needed.")
        if energies.device.type == "meta":
            raise ValueError("energy returned a tensor on the device `meta`, which holds no values.")
        return at_least_float32(energies.detach()).to(ids.device)
