"""The names of everything that computes energies. Every kind has a file of its own."""

from .causal_log_probs import autoregressive_log_probs
from .network_energy import EDLMEnergyModel, EDLMEnergyOutput
from .projection import linear_log_probs
from .shared_energy import EDLMSharedEnergyModel, SharedLinear

__all__ = [
    "EDLMEnergyModel",
    "EDLMEnergyOutput",
    "EDLMSharedEnergyModel",
    "SharedLinear",
    "autoregressive_log_probs",
    "linear_log_probs",
]
