"""Importance weights: low energies weigh more, at every temperature.

What cannot be weighed is an error.
"""

import math

import pytest
import torch

from edlm_hf.modeling.importance_weights import effective_sample_size, importance_weights
from edlm_hf.modeling.masked_diffusion import resample


def test_weights_favour_low_energies():
    energies = torch.tensor([[0.0, math.log(3.0), math.inf], [5.0, 5.0, 5.0]])
    expected = torch.tensor([[0.75, 0.25, 0.0], [1 / 3] * 3], dtype=torch.float64)
    weights = importance_weights(energies)
    torch.testing.assert_close(weights, expected)

    # (.75^2 + .25^2)^-1 = 1.6
    sizes = effective_sample_size(weights)
    torch.testing.assert_close(sizes, torch.tensor([1.6, 3.0], dtype=torch.float64))

    # exp(-E / 2)
    flat = importance_weights(energies[:, :2], temperature=2.0)
    ratio = flat[0, 0] / flat[0, 1]
    torch.testing.assert_close(ratio, torch.tensor(3**0.5, dtype=torch.float64))

    # a certain candidate is always chosen
    certain = torch.tensor([[0.0, 1.0, 0.0]] * 4, dtype=torch.float64)
    uniforms = torch.tensor([[0.0], [0.3], [0.9], [0.999]], dtype=torch.float64)
    assert resample(certain, uniforms).tolist() == [1] * 4


def test_every_positive_temperature_has_its_weights():
    energies = torch.tensor([[3.0, 1.0, 2.0, math.inf]])
    cold = importance_weights(energies, 1e-310)
    assert cold.tolist() == [[0, 1, 0, 0]]

    hot = importance_weights(energies, math.inf)
    assert hot[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])

    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            importance_weights(energies, temperature)


@pytest.mark.parametrize(
    ("energies", "message"),
    [
        ([[0.0, math.nan]], "NaN or -inf"),
        ([[0.0, -math.inf]], "NaN or -inf"),
        ([[math.inf] * 2], "All candidates"),
    ],
)
def test_unusable_energies_are_errors(energies, message):
    with pytest.raises(ValueError, match=message):
        importance_weights(torch.tensor(energies))
