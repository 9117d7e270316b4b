"""What is minimised, as pure functions: times, weights and losses of the denoiser and of the energy.

Nothing here knows a network. Shapes: B rows, L positions, n negatives per row. Losses are in nats.
"""

import math

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from edlm_hf.evaluation.noising import GOLDEN_RATIO
from edlm_hf.modeling.masked_diffusion import NoiseSchedule, at_least_float32

SMALLEST_TIME = 1e-3  # the published `sampling_eps`: the weight 1 / t stays below 1,000
LARGEST_WEIGHT = -math.log(-math.expm1(-SMALLEST_TIME))

# ---------------------------------------------------------------------------------------------------- times and weights


def low_discrepancy_times(
    uniforms: torch.Tensor, num_rows: int, first_row: int = 0, shift: float | torch.Tensor = 0.0
) -> torch.Tensor:
    """Times of the rows first_row, first_row + 1, ... of a global batch: row i has its own part of [SMALLEST_TIME, 1].

    u'_i = ((u_i + i) / num_rows + shift) mod 1, t_i = (1 - eps) u'_i + eps (MDLM, arXiv 2406.07524, appendix C.1, with
    shift = 0). A random shift common to the batch gives every row the whole range, whatever its place in the batch and
    also where the last batch of an epoch is short.

    Args:
        uniforms: (B,) on [0, 1), independent. num_rows: rows of the batch in all processes and accumulation steps.

    Returns:
        (B,) times.
    """
    row = torch.arange(len(uniforms), device=uniforms.device) + first_row
    return (1 - SMALLEST_TIME) * (((uniforms + row) / num_rows + shift) % 1) + SMALLEST_TIME


def lattice_times(numbers: torch.Tensor, shift: float | torch.Tensor) -> torch.Tensor:
    """Times of the texts with these numbers, (B,) integers: each a function of its number, all together even.

    u_i = (i (sqrt(5) - 1) / 2 + shift) mod 1, t_i = (1 - eps) u_i + eps. Any run of numbers covers [0, 1) evenly.
    """
    return (1 - SMALLEST_TIME) * ((numbers * GOLDEN_RATIO + shift) % 1) + SMALLEST_TIME


def bound_weight(schedule: NoiseSchedule, t: torch.Tensor) -> torch.Tensor:
    """w(t) = sigma'(t) / (exp(sigma(t)) - 1) of the continuous-time bound, 1 / t for log-linear noise.

    The bound is int_0^1 w(t) E[sum_{i in M} -log p_theta(x_0^i | x_t)] dt (MDLM, equation 10).
    """
    return schedule.rate(t) / torch.expm1(schedule.total(t))


def importance_times(schedule: NoiseSchedule, uniforms: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Times with a density proportional to w(t), and the weight that is then the same for all of them.

    The logarithm of the share of masks, log(1 - alpha_t), is uniform between log(1 - exp(-1e-3)) and 0, and the weight
    is the length of that interval. This is also the published "change of variables", in which the integral runs over
    that logarithm; published networks then see the new variable in place of sigma, ours always see sigma.

    Args:
        uniforms: (B,) on [0, 1].

    Returns:
        (B,) times, and the weight.
    """
    return schedule.time(torch.exp(-LARGEST_WEIGHT * (1 - uniforms))), LARGEST_WEIGHT


# ------------------------------------------------------------------------------------------------------------- denoiser


def masked_token_losses(
    logits: torch.Tensor, clean_ids: torch.Tensor, masked: torch.Tensor, mask_token_id: int
) -> torch.Tensor:
    """-log p_theta(x_0^i | x_t) at the masked positions under SUBS (the mask token is impossible), 0 elsewhere.

    Args:
        logits: (B, L, V). clean_ids: (B, L). masked: (B, L) bool.

    Returns:
        (B, L) nats, at least float32.
    """
    chosen = at_least_float32(logits[masked])
    if mask_token_id < chosen.shape[-1]:
        is_mask = torch.arange(chosen.shape[-1], device=chosen.device) == mask_token_id
        chosen = chosen.masked_fill(is_mask, -torch.inf)
    losses = cross_entropy(chosen, clean_ids[masked], reduction="none")
    return torch.zeros(masked.shape, dtype=losses.dtype, device=losses.device).masked_scatter(masked, losses)


# --------------------------------------------------------------------------------------------------------------- energy


def binary_nce_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(-E(x_0)) - mean_j log sigmoid(E(x^j)), the paper's equation 11 with n negatives.

    2 log 2 where E = 0; 2 log 2 + 2 log cosh(c / 2) where E = c; 2 log 2 - 2 JS(q, p_theta) at the optimum
    E* = -log q / p_theta.

    Args:
        positive: (B,) energies of the data. negative: (B, n) energies of draws from the proposal.

    Returns:
        (B,) nats.
    """
    return -logsigmoid(-positive) - logsigmoid(negative).mean(-1)


def ranking_nce_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log of the weight exp(-E_1) / sum_j exp(-E_j) of the data among the n + 1 candidates.

    With k = n + 1 it is the term of the sampler bound, -log(k exp(-E_1) / sum_j exp(-E_j)), plus log k: at least
    log(n + 1) - (what the energy wins). The energy is determined up to a function of x_t.

    Args:
        positive: (B,). negative: (B, n).

    Returns:
        (B,) nats.
    """
    energies = torch.cat([positive.unsqueeze(-1), negative], dim=-1)
    return -(-energies).log_softmax(-1)[..., 0]


NCE_LOSSES = {"binary": binary_nce_loss, "ranking": ranking_nce_loss}


def nce_readings(positive: torch.Tensor, negative: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the energies of a batch tell, per row (B,) each.

    - `nce_loss`: the binary loss, 2 log 2 = 1.386 for an energy that knows nothing.
    - `jensen_shannon`: log 2 - loss / 2 nats, a lower bound on JS(q, p_theta) that the optimum attains; at most log 2.
    - `accuracy`: share of data with E < 0 and of draws with E > 0.
    - `energy_data`, `energy_draws`: means; `energy_draws_squared`: mean square, for the standard deviation.
    """
    loss = binary_nce_loss(positive, negative)
    return {
        "nce_loss": loss,
        "jensen_shannon": math.log(2) - loss / 2,
        "accuracy": ((positive < 0).float() + (negative > 0).float().mean(-1)) / 2,
        "energy_data": positive,
        "energy_draws": negative.mean(-1),
        "energy_draws_squared": negative.square().mean(-1),
    }


def summarise_readings(readings: dict[str, float]) -> dict[str, float]:
    """Averages of `nce_readings` with the standard deviation of the draws' energies in place of their mean square.

    It is over all texts, times and draws together; most of it is between texts and cancels in importance weights.
    """
    variance = readings["energy_draws_squared"] - readings["energy_draws"] ** 2
    rest = {name: value for name, value in readings.items() if name != "energy_draws_squared"}
    return rest | {"energy_draws_sd": math.sqrt(max(0.0, variance))}


__all__ = [
    "NCE_LOSSES",
    "binary_nce_loss",
    "bound_weight",
    "importance_times",
    "lattice_times",
    "low_discrepancy_times",
    "masked_token_losses",
    "nce_readings",
    "ranking_nce_loss",
    "summarise_readings",
]
