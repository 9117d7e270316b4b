"""A measured number, with its standard error, the number of samples it comes from, and its unit."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

LARGEST_EXPONENT = 700.0  # exp of more overflows float64, above 709


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
        """Value and error to the first digit of the error, as `1.732 ± 0.004`.

        Where the error is zero or not finite, both have four digits.
        """
        error = self.standard_error
        if not (math.isfinite(error) and error > 0):
            return f"{self.value:.4g} ± {error:.4g}"

        # The decimal place of the first digit of the error, 3 for 0.004
        exponent = math.floor(math.log10(error))
        digits = max(0, -exponent)
        return f"{self.value:.{digits}f} ± {error:.{digits}f}"

    def to_dict(self) -> dict:
        """The fields by name."""
        return asdict(self)


def mean_estimate(values: Sequence[float] | torch.Tensor, unit: str) -> Estimate:
    """The mean of independent values (n,).

    Raises:
        ValueError: there are no values.
    """
    return ratio_estimate(values, torch.ones(len(values), device="cpu"), unit)


def ratio_estimate(
    numerators: Sequence[float] | torch.Tensor,
    denominators: Sequence[float] | torch.Tensor,
    unit: str,
) -> Estimate:
    """r = sum_i y_i / sum_i x_i over independent clusters i, such as the nats and tokens of texts.

    The standard error is found by linearisation (Cochran, Sampling Techniques, chapter 6):
    sqrt(n / (n - 1) sum_i (y_i - r x_i)^2) / sum_i x_i.

    Args:
        numerators, denominators: y and x, (n,) each. All sums are taken in float64.

    Raises:
        ValueError: there are no values, or the denominators do not sum to more than zero.
    """
    y = torch.as_tensor(numerators, dtype=torch.float64, device="cpu")
    x = torch.as_tensor(denominators, dtype=torch.float64, device="cpu")
    n = len(y)
    total = float(x.sum())
    if total <= 0:
        raise ValueError(f"{n} samples with {total:g} in all to divide by: nothing can be estimated from them.")

    # A single cluster says nothing about the spread
    ratio = float(y.sum()) / total
    if n == 1:
        return Estimate(ratio, math.nan, n, unit)

    # To first order the error of r is the mean of y_i - r x_i over the mean of x_i
    residuals = y - ratio * x
    variance = float(residuals.square().sum()) * n / (n - 1)  # of the sum over i
    standard_error = math.sqrt(variance) / total
    return Estimate(ratio, standard_error, n, unit)
