"""log Z(x_t) = log E_{p_theta}[exp(-E)] between two estimates from the energies of n proposals (paper, Theorem 1).

Shapes: B rows of n energies each.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edlm_hf.evaluation.estimate import LARGEST_EXPONENT, Estimate, mean_estimate

# The largest variance of the weights exp(-E), relative to n, for which the upper estimate holds
MOST_EXCESS = 0.1


@dataclass(frozen=True)
class LogPartitionBounds:
    """A lower and an upper estimate of log Z, in nats. It unpacks into the two.

    Args:
        lower: its expectation is below log Z for every n.
        upper: its expectation is above log Z only as n grows, see `trusted`.
        num_energies: n.
        energy_sd: standard deviation of the n energies (mean over rows).
        effective_sample_size: (sum w)^2 / sum w^2 with w = exp(-E), at most n (mean over rows).
        trusted: whether `upper` is in its asymptotic regime.
    """

    lower: Estimate
    upper: Estimate
    num_energies: int
    energy_sd: float
    effective_sample_size: float
    trusted: bool

    def __iter__(self) -> Iterator[Estimate]:
        return iter((self.lower, self.upper))


def log_mean_weights(energies: torch.Tensor) -> torch.Tensor:
    """T_n = log (1/n) sum_i exp(-E_i): (..., n) -> (...), float64."""
    log_weights = -energies.double()
    n = energies.shape[-1]
    return log_weights.logsumexp(-1) - math.log(n)


def leave_one_out(energies: torch.Tensor) -> torch.Tensor:
    """T_{n-1} without each of the n energies in turn: (..., n) -> (..., n), float64."""
    log_weights = -energies.double()

    # The log of an empty sum, (..., 1)
    none = torch.full_like(log_weights[..., :1], -torch.inf)

    # log sum_{j < i} w_j, (..., n)
    sums = log_weights[..., :-1].logcumsumexp(-1)
    before = torch.cat([none, sums], -1)

    # log sum_{j > i} w_j, as sums from the right
    reversed_weights = log_weights[..., 1:].flip(-1)
    sums = reversed_weights.logcumsumexp(-1).flip(-1)
    after = torch.cat([sums, none], -1)

    # No subtraction from the sum of all, which would lose the small weights
    num_others = energies.shape[-1] - 1
    return before.logaddexp(after) - math.log(num_others)


def partition_terms(energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower T_n and upper (2n - 1) T_n - 2 (n - 1) mean T_{n-1}: (..., n) -> (...) each, float64."""
    n = energies.shape[-1]
    lower = log_mean_weights(energies)
    mean_without_one = leave_one_out(energies).mean(-1)
    upper = (2 * n - 1) * lower - 2 * (n - 1) * mean_without_one
    return lower, upper


def log_partition_bounds(energies: torch.Tensor) -> LogPartitionBounds:
    """Bounds of log Z from energies of proposals drawn from p_theta (the paper's Theorem 1, after Deng et al. 2020).

    T_n = log (1/n) sum exp(-E_i) has E[T_n] <= log Z, increasing in n. The upper estimate
    (2n - 1) T_n - 2 (n - 1) T_{n-1}, with T_{n-1} the average over leaving one energy out, exceeds
    log Z only once n is large against the relative variance of exp(-E): with sd(E) = 5 it fails at
    every n <= 32. A warning says so, and `trusted` is False.

    Args:
        energies: (n,), or (B, n) for B rows (other x_t, or repetitions). +inf is a weight of zero.

    Returns:
        Both bounds in nats, averaged over rows. Standard errors are over rows where B > 1, and from
        the jackknife for a single row.

    Raises:
        ValueError: no real numbers, fewer than two of them, NaN or -inf, or no finite energy in a row.
    """
    try:
        energies = torch.as_tensor(energies, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        kind = type(energies).__name__
        raise ValueError(f"energies is a {kind} that holds no numbers: give (n,) or (B, n) with n >= 2.") from None
    if energies.is_complex() or energies.dim() not in (1, 2) or energies.shape[-1] < 2 or not len(energies):
        raise ValueError(f"energies has shape {tuple(energies.shape)}, but (n,) or (B, n) with n >= 2 is needed.")

    # A comparison with NaN is False, so that the first one finds it too
    energies = energies.detach().double()
    weights_are_finite = bool((energies > -torch.inf).all())
    rows_have_weight = bool((energies < torch.inf).any(-1).all())
    if not weights_are_finite or not rows_have_weight:
        raise ValueError("An energy is NaN or -inf, or all energies of a row are +inf: log Z does not exist.")

    # (B, n). A single row has no spread over rows.
    n = energies.shape[-1]
    rows = energies.reshape(-1, n)
    if len(rows) == 1:
        lower, upper = jackknife(rows[0])
    else:
        lower, upper = (mean_estimate(terms, "nats") for terms in partition_terms(rows))

    # How uneven the weights are, 1 / sum_i w_i^2 with sum_i w_i = 1, and how far the energies are apart
    weights = (-rows).softmax(-1)
    sample_sizes = 1 / weights.square().sum(-1)
    sample_size = float(sample_sizes.mean())
    energy_sd = float(finite_sd(rows).mean())

    # The relative variance of exp(-E), as observed and as it would be for normal energies, exp(sd^2) - 1.
    # Few samples miss the rare large weights, so that the larger of the two decides.
    observed_variance = n / sample_size - 1
    normal_variance = math.expm1(min(energy_sd**2, LARGEST_EXPONENT))
    trusted = max(observed_variance, normal_variance) / n <= MOST_EXCESS
    if not trusted:
        warnings.warn(
            f"log Z: the upper estimate is not to be trusted with n = {n} energies of standard deviation "
            f"{energy_sd:.2f} (effective sample size {sample_size:.1f}); the lower one is valid. Draw more candidates.",
            stacklevel=2,
        )
    return LogPartitionBounds(lower, upper, n, energy_sd, sample_size, trusted)


def finite_sd(rows: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the finite energies of every row, (B, n) -> (B,)."""
    finite = rows.isfinite()
    count = finite.sum(-1)

    # Means (B,), and deviations (B, n) that are 0 where E is +inf
    mean = rows.where(finite, 0.0).sum(-1) / count
    deviations = (rows - mean.unsqueeze(-1)).where(finite, 0.0)

    # A row with one finite energy has 0 / 1
    squares = deviations.square().sum(-1)
    variance = squares / (count - 1).clamp_min(1)
    return variance.sqrt()


def jackknife(energies: torch.Tensor) -> tuple[Estimate, Estimate]:
    """Both bounds from one row (n,), with jackknife standard errors (NaN for n = 2)."""
    n = len(energies)
    lower, upper = partition_terms(energies)
    lower_error = upper_error = math.nan

    # The bounds without each energy in turn, (n,) each. Without one of two the upper one does not exist.
    if n > 2:
        lowers = []
        uppers = []
        for i in range(n):
            before = energies[:i]
            after = energies[i + 1 :]
            others = torch.cat([before, after])
            lower_without, upper_without = partition_terms(others)
            lowers.append(lower_without)
            uppers.append(upper_without)

        lower_error = jackknife_error(torch.stack(lowers))
        upper_error = jackknife_error(torch.stack(uppers))

    lower_bound = Estimate(float(lower), lower_error, n, "nats")
    upper_bound = Estimate(float(upper), upper_error, n, "nats")
    return lower_bound, upper_bound


def jackknife_error(replicates: torch.Tensor) -> float:
    """sqrt((n - 1) / n sum_i (x_i - mean x)^2) of the n leave-one-out values (n,)."""
    n = len(replicates)
    deviations = replicates - replicates.mean()
    variance = (n - 1) / n * deviations.square().sum()
    return float(variance.sqrt())
