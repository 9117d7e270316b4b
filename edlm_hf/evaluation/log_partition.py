"""log Z(x_t) = log E_{p_theta}[exp(-E)] between two estimates from the energies of n proposals (paper, Theorem 1)."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edlm_hf.evaluation.estimate import Estimate, mean_estimate


@dataclass(frozen=True)
class LogPartitionBounds:
    """A lower and an upper estimate of log Z, in nats; unpacks into the two.

    Args:
        lower: its expectation is below log Z for every n. upper: above log Z only as n grows, see `trusted`.
        num_energies: n. energy_sd: standard deviation of the n energies (mean over rows).
        effective_sample_size: (sum w)^2 / sum w^2 with w = exp(-E), mean over rows; at most n.
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
    return (-energies.double()).logsumexp(-1) - math.log(energies.shape[-1])


def leave_one_out(energies: torch.Tensor) -> torch.Tensor:
    """T_{n-1} without each of the n energies in turn: (..., n) -> (..., n), float64."""
    weights = -energies.double()
    none = torch.full_like(weights[..., :1], -torch.inf)
    before = torch.cat([none, weights[..., :-1].logcumsumexp(-1)], -1)
    after = torch.cat([weights[..., 1:].flip(-1).logcumsumexp(-1).flip(-1), none], -1)
    return before.logaddexp(after) - math.log(energies.shape[-1] - 1)


def partition_terms(energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower T_n and upper (2n - 1) T_n - 2 (n - 1) mean T_{n-1}: (..., n) -> (...) each, float64."""
    n, lower = energies.shape[-1], log_mean_weights(energies)
    return lower, (2 * n - 1) * lower - 2 * (n - 1) * leave_one_out(energies).mean(-1)


def log_partition_bounds(energies: torch.Tensor) -> LogPartitionBounds:
    """Bounds of log Z from energies of proposals drawn from p_theta (the paper's Theorem 1, after Deng et al. 2020).

    T_n = log (1/n) sum exp(-E_i) has E[T_n] <= log Z, increasing in n. (2n - 1) T_n - 2 (n - 1) T_{n-1}, with T_{n-1}
    the average over leaving one energy out, exceeds log Z only once n is large against the relative variance of
    exp(-E): with sd(E) = 5 it fails at every n <= 32. A warning says so, and `trusted` is False.

    Args:
        energies: (n,), or (B, n) for B rows (other x_t, or repetitions); +inf stands for a weight of zero.

    Returns:
        Both bounds in nats, averaged over rows. Standard errors: over rows where B > 1; else by the jackknife.

    Raises:
        ValueError: fewer than two energies, NaN or -inf, or no finite energy in a row.
    """
    energies = torch.as_tensor(energies, device="cpu")
    if energies.dim() not in (1, 2) or energies.shape[-1] < 2 or not len(energies):
        raise ValueError(f"energies has shape {tuple(energies.shape)}, but (n,) or (B, n) with n >= 2 is needed.")
    energies = energies.detach().double()
    if not bool((energies > -torch.inf).all()) or not bool((energies < torch.inf).any(-1).all()):
        raise ValueError("An energy is NaN or -inf, or all energies of a row are +inf: log Z does not exist.")
    rows, n = energies.reshape(-1, energies.shape[-1]), energies.shape[-1]
    lower, upper = partition_terms(rows)
    if len(rows) > 1:
        bounds = mean_estimate(lower, "nats"), mean_estimate(upper, "nats")
    else:
        bounds = jackknife(rows[0])
    weights = (-rows).softmax(-1)
    size = float((1 / weights.square().sum(-1)).mean())
    deviation = float(finite_sd(rows).mean())
    # (relative variance of exp(-E)) / n, as observed and as a normal law of the energies would have it
    excess = max(n / size - 1, math.expm1(min(deviation**2, 700.0))) / n
    if excess > 0.1:
        warnings.warn(
            f"log Z: the upper estimate is not to be trusted with n = {n} energies of standard deviation "
            f"{deviation:.2f} (effective sample size {size:.1f}); the lower one is valid. Draw more candidates.",
            stacklevel=2,
        )
    return LogPartitionBounds(*bounds, n, deviation, size, excess <= 0.1)


def finite_sd(rows: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the finite energies of every row, (B, n) -> (B,)."""
    finite = rows.isfinite()
    count = finite.sum(-1)
    mean = rows.where(finite, 0.0).sum(-1) / count
    squares = (rows - mean.unsqueeze(-1)).where(finite, 0.0).square().sum(-1)
    return (squares / (count - 1).clamp_min(1)).sqrt()


def jackknife(energies: torch.Tensor) -> tuple[Estimate, Estimate]:
    """Both bounds from one row (n,), with jackknife standard errors (NaN where n - 2 energies are none)."""
    n = len(energies)
    lower, upper = (float(x) for x in partition_terms(energies))
    if n < 3:
        return Estimate(lower, math.nan, n, "nats"), Estimate(upper, math.nan, n, "nats")
    kept = (torch.cat([energies[:i], energies[i + 1 :]]) for i in range(n))
    replicates = [torch.stack(terms) for terms in zip(*map(partition_terms, kept), strict=True)]
    errors = [float(((n - 1) / n * (x - x.mean()).square().sum()).sqrt()) for x in replicates]
    return Estimate(lower, errors[0], n, "nats"), Estimate(upper, errors[1], n, "nats")
