"""A measured number: with its standard error, the number of samples behind it, and its unit."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Estimate:
    """`value` and its `standard_error`, both in `unit`, from `num_samples` independent samples.

    The standard error of a single sample is unknown: NaN.
    """

    value: float
    standard_error: float
    num_samples: int
    unit: str

    def __str__(self) -> str:
        return f"{self.rounded()} {self.unit} (n={self.num_samples})"

    def rounded(self) -> str:
        """Value and error to the first digit of the error, `1.732 ± 0.004`; to four digits where the error is none."""
        error = self.standard_error
        if not (math.isfinite(error) and error > 0):
            return f"{self.value:.4g} ± {error:.4g}"
        digits = max(0, -math.floor(math.log10(error)))
        return f"{self.value:.{digits}f} ± {error:.{digits}f}"

    def to_dict(self) -> dict:
        return asdict(self)


def mean_estimate(values: Sequence[float] | torch.Tensor, unit: str) -> Estimate:
    """The mean of independent values (n,).

    Raises:
        ValueError: there are no values.
    """
    return ratio_estimate(values, torch.ones(len(values), device="cpu"), unit)


def ratio_estimate(
    numerators: Sequence[float] | torch.Tensor, denominators: Sequence[float] | torch.Tensor, unit: str
) -> Estimate:
    """r = sum_i y_i / sum_i x_i over independent clusters i, as nats over tokens when texts are drawn.

    Standard error by linearisation (Cochran, Sampling Techniques, chapter 6):
    sqrt(n / (n - 1) sum_i (y_i - r x_i)^2) / sum_i x_i.

    Args:
        numerators, denominators: (n,) each; computed with in float64.

    Raises:
        ValueError: there are no values, or the denominators do not sum to more than zero.
    """
    y, x = (torch.as_tensor(values, dtype=torch.float64, device="cpu") for values in (numerators, denominators))
    n, total = len(y), float(x.sum())
    if total <= 0:
        raise ValueError(f"{n} samples with {total:g} in all to divide by: nothing can be estimated from them.")
    ratio = float(y.sum()) / total
    variance = float((y - ratio * x).square().sum()) * n / (n - 1) if n > 1 else math.nan
    return Estimate(ratio, math.sqrt(variance) / total, n, unit)
