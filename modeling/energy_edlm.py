"""Residual energies E(x_0, x_t) of whole sequences; low energy = likely (EDLM, arXiv 2410.21357, section 4).

    p(x_0|x_t) = p_theta(x_0|x_t) exp(-E(x_0, x_t)) / Z(x_t)

One file for each kind, and all their names here.
"""

from .autoregressive_energy import autoregressive_log_probs
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
