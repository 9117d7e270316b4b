"""Training objectives as pure functions: times, weights and losses of the denoiser and the energy.

Nothing here knows a network. Shapes: B rows, L positions, n negatives per row. Losses are in nats.
"""

import math

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from edlm_hf.evaluation.noising import GOLDEN_RATIO
from edlm_hf.modeling.masked_diffusion import NoiseSchedule, at_least_float32

# The published `sampling_eps`: the weight 1 / t stays below 1,000
SMALLEST_TIME = 1e-3

# The length of the interval of log(1 - alpha_t) in log-linear noise, see `importance_times`
LARGEST_WEIGHT = -math.log(-math.expm1(-SMALLEST_TIME))


def low_discrepancy_times(
    uniforms: torch.Tensor,
    num_rows: int,
    first_row: int = 0,
    shift: float | torch.Tensor = 0.0,
) -> torch.Tensor:
    """Draw the times of rows of a global batch, of which each has its own part of [eps, 1].

    u'_i = ((u_i + i) / num_rows + shift) mod 1, t_i = (1 - eps) u'_i + eps with eps =
    `SMALLEST_TIME` (MDLM, arXiv 2406.07524, appendix C.1, with shift = 0). A random shift common to
    the batch gives every row the whole range, whatever its index in the batch, also where the last
    batch of an epoch is short.

    Args:
        uniforms: (B,) on [0, 1), independent.
        num_rows: rows of the global batch, in all processes and accumulation steps.
        first_row: the index i of the first of the B rows, which the others follow.
        shift: on [0, 1).

    Returns:
        (B,) times.
    """
    # u'_i, row i in the stratum [i, i + 1) / num_rows before the shift
    row = torch.arange(len(uniforms), device=uniforms.device) + first_row
    strata = ((uniforms + row) / num_rows + shift) % 1

    # The weight 1 / t would have no bound at t = 0
    return (1 - SMALLEST_TIME) * strata + SMALLEST_TIME


def lattice_times(numbers: torch.Tensor, shift: float | torch.Tensor) -> torch.Tensor:
    """Draw times of texts by their numbers, (B,) integers: each a function of its number alone.

    u_i = (i (sqrt(5) - 1) / 2 + shift) mod 1, t_i = (1 - eps) u_i + eps. Any sequence of successive
    numbers covers [0, 1) evenly.
    """
    lattice = (numbers * GOLDEN_RATIO + shift) % 1
    return (1 - SMALLEST_TIME) * lattice + SMALLEST_TIME


def bound_weight(schedule: NoiseSchedule, t: torch.Tensor) -> torch.Tensor:
    """w(t) = sigma'(t) / (exp(sigma(t)) - 1) of the continuous-time bound: 1 / t if log-linear.

    The bound is int_0^1 w(t) E[sum_{i in M} -log p_theta(x_0^i | x_t)] dt (MDLM, equation 10).
    """
    return schedule.rate(t) / torch.expm1(schedule.total(t))


def importance_times(schedule: NoiseSchedule, uniforms: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Draw times with a density proportional to w(t), so that all of them have the same weight.

    The logarithm of the share of masks, log(1 - alpha_t), is uniform between log(1 - exp(-1e-3))
    and 0, and the weight is the length of that interval. This is also the published "change of
    variables", in which the integral runs over that logarithm. Published networks then see the new
    variable in place of sigma, ours always see sigma.

    Args:
        schedule: of the denoiser.
        uniforms: (B,) on [0, 1].

    Returns:
        (B,) times, and the weight.
    """
    # log(1 - alpha_t) = -W (1 - u), with W = -log(1 - exp(-1e-3))
    share = torch.exp(-LARGEST_WEIGHT * (1 - uniforms))
    return schedule.time(share), LARGEST_WEIGHT


def masked_token_losses(
    logits: torch.Tensor,
    clean_ids: torch.Tensor,
    masked: torch.Tensor,
    mask_token_id: int,
) -> torch.Tensor:
    """-log p_theta(x_0^i | x_t) at the masks, 0 elsewhere. The mask token is impossible (SUBS).

    Args:
        logits: (N, V) at the N masks in their order, or (B, L, V) everywhere.
        clean_ids: (B, L).
        masked: (B, L) bool.
        mask_token_id: beyond V where the denoiser cannot emit it.

    Returns:
        (B, L) nats, at least float32.
    """
    # (N, V) at the N masks
    at_masks = logits if logits.dim() == 2 else logits[masked]
    chosen = at_least_float32(at_masks)

    # The mask gets the logit -inf
    vocab_size = chosen.shape[-1]
    if mask_token_id < vocab_size:
        ids = torch.arange(vocab_size, device=chosen.device)
        is_mask = ids == mask_token_id
        chosen = chosen.masked_fill(is_mask, -torch.inf)

    # (N,), back in their places: (B, L)
    losses = cross_entropy(chosen, clean_ids[masked], reduction="none")
    zeros = torch.zeros(masked.shape, dtype=losses.dtype, device=losses.device)
    return zeros.masked_scatter(masked, losses)


def draft_cuts(modelled: torch.Tensor) -> torch.Tensor:
    """The positions (B, L) bool where a round may begin: modelled ones before a modelled one.

    Args:
        modelled: (B, L) bool.
    """
    # The last token has none after it: the roll has put the first one there
    next_is_modelled = modelled.roll(-1, dims=-1)
    next_is_modelled[:, -1] = False
    return modelled & next_is_modelled


def drafts_after(
    modelled: torch.Tensor,
    uniforms: torch.Tensor,
    draft_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut every row at c, uniform over its `draft_cuts`: what is masked, and where drafts stand.

    In a row of five modelled tokens c is 0, 1, 2 or 3. With u = 0.3 it is 1, positions 1 to 4 are
    masked, and with n = 3 the drafts after the first one stand at 2 and 3.

    Args:
        modelled: (B, L) bool.
        uniforms: (B,) on [0, 1).
        draft_length: n, the first draft included, which stands at c.

    Returns:
        All positions from c on, and the modelled ones of c + 1 .. c + n - 1, (B, L) bool each.
        None in a row that cannot be cut.
    """
    # c has the number floor(u m) among the m positions where a round may begin
    cuts = draft_cuts(modelled)
    num_cuts = cuts.sum(-1)  # (B,)
    last_number = (num_cuts - 1).clamp_min(0)  # u m may be rounded up to m
    number = torch.minimum((uniforms * num_cuts).long(), last_number)
    is_cut = cuts & (cuts.cumsum(-1) == number.unsqueeze(1) + 1)

    # The number of a draft: 1 at c, 2 at c + 1, ...
    masked = is_cut.cumsum(-1) > 0
    draft = masked.cumsum(-1)
    drafted = modelled & (draft >= 2) & (draft <= draft_length)
    return masked, drafted


def draft_losses(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The chance that a draft from q is refused by p, and KL(p || q).

    A draft x ~ q is accepted with the chance min(1, p(x) / q(x)), so that one of
    sum_v (p(v) - q(v))+, their distance in total variation, is refused (arXiv 2211.17192). With
    p = (.5, .3, .2) and q = (.2, .6, .2) that is .3.

    Args:
        log_q, log_p: (N, V) normalised, -inf at the same ids.

    Returns:
        (N,) chances, and (N,) nats.
    """
    p = log_p.exp()
    refused = (p - log_q.exp()).clamp_min(0).sum(-1)
    ratio = torch.where(p > 0, log_p - log_q, 0)
    return refused, (p * ratio).sum(-1)


def binary_nce_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(-E(x_0)) - mean_j log sigmoid(E(x^j)): the paper's equation 11, n negatives.

    2 log 2 where E = 0, 2 log 2 + 2 log cosh(c / 2) where E = c, and 2 log 2 - 2 JS(q, p_theta) at
    the optimum E* = -log q / p_theta.

    Args:
        positive: (B,) energies of the data.
        negative: (B, n) energies of draws from the proposal.

    Returns:
        (B,) nats.
    """
    data_loss = -logsigmoid(-positive)
    return data_loss - logsigmoid(negative).mean(-1)


def ranking_nce_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log of the weight exp(-E_1) / sum_j exp(-E_j) of the data among the n + 1 candidates.

    With k = n + 1 it is the term of the sampler bound, -log(k exp(-E_1) / sum_j exp(-E_j)), plus
    log k. Its mean is at least log(n + 1) less the nats that the energy gains. The energy is
    determined up to a function of x_t.

    Args:
        positive: (B,) energies of the data.
        negative: (B, n) energies of draws from the proposal.

    Returns:
        (B,) nats.
    """
    # (B, 1 + n), the data first
    energies = torch.cat([positive.unsqueeze(-1), negative], dim=-1)
    log_weights = (-energies).log_softmax(-1)
    return -log_weights[..., 0]


NCE_LOSSES = {"binary": binary_nce_loss, "ranking": ranking_nce_loss}


def nce_readings(positive: torch.Tensor, negative: torch.Tensor) -> dict[str, torch.Tensor]:
    """Describe the energies of a batch by numbers (B,) per row.

    - `nce_loss`: the binary loss, 2 log 2 = 1.386 for an energy that knows nothing.
    - `jensen_shannon`: log 2 - loss / 2 nats, a lower bound on JS(q, p_theta) <= log 2 that the
      optimum attains.
    - `accuracy`: share of data with E < 0 and of draws with E > 0.
    - `energy_data`, `energy_draws`: means.
    - `energy_draws_squared`: mean square, for the standard deviation.
    """
    loss = binary_nce_loss(positive, negative)

    # The classifier says "data" where E < 0, with the probability sigmoid(-E)
    data_found = (positive < 0).float()
    draws_found = (negative > 0).float().mean(-1)
    return {
        "nce_loss": loss,
        "jensen_shannon": math.log(2) - loss / 2,
        "accuracy": (data_found + draws_found) / 2,
        "energy_data": positive,
        "energy_draws": negative.mean(-1),
        "energy_draws_squared": negative.square().mean(-1),
    }


def summarise_readings(readings: dict[str, float]) -> dict[str, float]:
    """Replace the mean square of the draws' energies by their standard deviation.

    It is over all texts, times and draws together. Most of it is between texts and cancels in
    importance weights.

    Args:
        readings: averages of `nce_readings`.
    """
    # E[x^2] - E[x]^2, which rounding may take below zero
    summary = dict(readings)
    mean_square = summary.pop("energy_draws_squared")
    variance = mean_square - summary["energy_draws"] ** 2
    summary["energy_draws_sd"] = math.sqrt(max(0.0, variance))
    return summary


__all__ = [
    "NCE_LOSSES",
    "binary_nce_loss",
    "bound_weight",
    "draft_cuts",
    "drafts_after",
    "importance_times",
    "lattice_times",
    "low_discrepancy_times",
    "masked_token_losses",
    "nce_readings",
    "ranking_nce_loss",
    "summarise_readings",
]
