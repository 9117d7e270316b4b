"""Estimates of log Z from proposals: C10 of the exact test-bed, and when not to trust them."""

import itertools
import math
import warnings

import pytest
import torch
from torch import inf, nan

from edlm_hf.evaluation import log_partition_bounds
from edlm_hf.evaluation.log_partition import leave_one_out, log_mean_weights, partition_terms

SD = 1.0
LOG_Z = SD**2 / 2  # of energies E ~ N(0, sd^2)


def energies(rows: int, n: int, sd: float = SD, seed: int = 0) -> torch.Tensor:
    """Normal energies (rows, n) of standard deviation `sd`."""
    generator = torch.Generator().manual_seed(seed)
    return sd * torch.randn(rows, n, generator=generator, dtype=torch.float64)


def test_the_lower_estimate_is_below_log_z_and_rises_with_n():
    estimates = [log_partition_bounds(energies(20_000, n)).lower for n in (2, 4, 8, 32)]
    for estimate in estimates:
        assert estimate.value < LOG_Z + 3 * estimate.standard_error

    for smaller, larger in itertools.pairwise(estimates):
        error = math.hypot(smaller.standard_error, larger.standard_error)
        assert larger.value - smaller.value > 3 * error


def test_the_upper_estimate_is_above_log_z_where_it_is_trusted():
    bounds = log_partition_bounds(energies(5_000, 64))
    assert bounds.trusted
    assert bounds.upper.value > LOG_Z - 3 * bounds.upper.standard_error

    lower, upper = bounds
    assert lower.value < upper.value


def test_the_upper_estimate_fails_at_a_large_spread_and_says_so():
    message = "not to be trusted with n = 32 energies of standard deviation 4.9"
    with pytest.warns(UserWarning, match=message):
        bounds = log_partition_bounds(energies(20_000, 32, sd=5.0))

    assert not bounds.trusted
    log_z = 5**2 / 2
    assert bounds.upper.value < log_z - 3 * bounds.upper.standard_error
    assert bounds.energy_sd == pytest.approx(5, rel=0.02)
    assert 1 < bounds.effective_sample_size < 5


def test_leaving_one_out_in_turn_varies_less_than_leaving_the_last_out():
    n = 8
    draws = energies(20_000, n)
    _, in_turn = partition_terms(draws)

    # (2 n - 1) T_n - 2 (n - 1) T_{n-1}, without the last energy in T_{n-1}
    lower = log_mean_weights(draws)
    without_last = log_mean_weights(draws[:, :-1])
    last = (2 * n - 1) * lower - 2 * (n - 1) * without_last
    assert in_turn.var() < 0.7 * last.var()

    error = float((in_turn - last).std()) / math.sqrt(len(draws))
    assert abs(in_turn.mean() - last.mean()) < 3 * error


def test_constant_energies_have_an_exact_log_z():
    lower, upper = log_partition_bounds(torch.full((5,), 2.0))
    assert lower.value == pytest.approx(-2, abs=1e-12)
    assert upper.value == pytest.approx(-2, abs=1e-12)
    assert lower.standard_error == pytest.approx(0, abs=1e-12)


def test_leave_one_out_leaves_out_each_energy_once():
    row = torch.tensor([0.0, 1.0, 3.0])
    expected = []
    for a, b in ((1, 3), (0, 3), (0, 1)):
        mean_weight = (math.exp(-a) + math.exp(-b)) / 2
        expected.append(math.log(mean_weight))

    assert leave_one_out(row).tolist() == pytest.approx(expected)


def test_the_jackknife_of_one_row_is_the_spread_over_rows():
    errors = []
    for seed in range(200):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bounds = log_partition_bounds(energies(1, 64, seed=seed)[0])
        errors.append(bounds.lower.standard_error)

    spread = log_mean_weights(energies(20_000, 64, seed=1000)).std()
    assert sum(errors) / len(errors) == pytest.approx(float(spread), rel=0.15)


def test_rejected_candidates_have_the_weight_zero():
    half_rejected = torch.tensor([[0.0, inf, 0.0, inf]] * 2)
    lower, _ = log_partition_bounds(half_rejected)
    assert lower.value == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("bad", [[1.0], [[1.0]], [0.0, nan], [0.0, -inf], [inf, inf]])
def test_energies_without_a_log_z_are_refused(bad):
    with pytest.raises(ValueError, match="n >= 2|log Z does not exist"):
        log_partition_bounds(torch.tensor(bad))


@pytest.mark.parametrize(
    "energies",
    ["low", None, [["a"]], [[1.0], [1.0, 2.0]], torch.ones(3, dtype=torch.complex64)],
)
def test_energies_are_numbers(energies):
    with pytest.raises(ValueError, match="holds no numbers|n >= 2"):
        log_partition_bounds(energies)
