"""How unequally an energy weights its candidates, step by step: effective sample size and sd(E)."""

import math

from edlm_hf.evaluation.log_partition import finite_sd
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput

Sums = dict[str, list[float]]


def sums_of_steps(output: EDLMGenerationOutput) -> Sums | None:
    """Sums over the samples of a batch for each of T steps. None without an energy.

    `count` is the number of samples with candidates, `size` and `size_squares` sum their effective
    sample sizes and the squares, `energy_sd` the standard deviations of their energies.
    """
    if output.energies is None:
        return None

    # (T, B), NaN where a sample had nothing to reveal
    sizes = output.effective_sample_size.double().cpu()
    weighted = sizes.isfinite()
    sizes = sizes.where(weighted, 0.0)

    # (T, B, k) -> (T, B)
    energies = output.energies.double().cpu()
    deviations = finite_sd(energies.flatten(0, 1)).view(sizes.shape)
    deviations = deviations.where(weighted, 0.0)

    # Sums, not means: batches of different sizes are added before anything is divided
    sums = {
        "count": weighted,
        "size": sizes,
        "size_squares": sizes.square(),
        "energy_sd": deviations,
    }
    return {name: values.sum(-1).tolist() for name, values in sums.items()}


def add_sums(batches: list[Sums | None]) -> Sums | None:
    """The sums over all batches. Batches without an energy are left out."""
    batches = [batch for batch in batches if batch is not None]
    if not batches:
        return None

    # fsum, so that the result does not depend on the order of the batches
    added = {}
    for name in batches[0]:
        by_step = zip(*(batch[name] for batch in batches), strict=True)
        added[name] = [math.fsum(values) for values in by_step]
    return added


def profile(sums: Sums | None) -> list[dict]:
    """Mean effective sample size and sd(E) of every step with candidates, and t where it starts."""
    if sums is None:
        return []

    rows = []
    num_steps = len(sums["count"])
    for i in range(num_steps):
        # A step that revealed nothing in any sample had no candidates
        count = sums["count"][i]
        if not count:
            continue

        # Step i goes from t = 1 - i/T to 1 - (i + 1)/T
        mean = sums["size"][i] / count
        row = {
            "t": 1 - i / num_steps,
            "num_samples": int(count),
            "effective_sample_size": mean,
            "standard_error": standard_error(count, mean, sums["size_squares"][i]),
            "energy_sd": sums["energy_sd"][i] / count,
        }
        rows.append(row)
    return rows


def standard_error(count: float, mean: float, sum_of_squares: float) -> float | None:
    """Standard error of a mean, None for a single value."""
    if count <= 1:
        return None

    # Var(X) = E[X^2] - E[X]^2, which rounding can make a little negative; n - 1 is Bessel's correction
    variance = max(0.0, sum_of_squares / count - mean**2)
    return math.sqrt(variance / (count - 1))


__all__ = ["add_sums", "profile", "sums_of_steps"]
