"""Facts of docs/claims.md that no other test holds: the sign of the energy, and log Z from one proposal."""

import numpy as np
import pytest
import torch
from exact import STATES, chain_law, marginals, perturbed, product_law, random_joint
from published import golden

from edlm_hf.evaluation.log_partition import log_mean_weights

JOINT = random_joint(seed=3)
P_AR = 0.6 * JOINT + 0.4 * random_joint(seed=11)
PROPOSAL = perturbed(marginals(JOINT), seed=1)

# (256, 81) p_theta(x_0 | x_t)
PRODUCTS = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_with_the_released_sign_the_best_candidate_gets_the_least_weight(energy_type):
    """Energies recorded from the published networks, and the weights that either sign gives them."""
    data = golden("b_ar_energy")
    energy = data[f"energy_{energy_type}_cand"].T
    released = data[f"is_weights_{energy_type}_released_sign"]
    paper = data[f"is_weights_{energy_type}_paper"]

    torch.testing.assert_close(released, energy.softmax(-1))
    torch.testing.assert_close(paper, (-energy).softmax(-1))
    assert torch.equal(paper.argmax(-1), released.argmin(-1))


def two_candidate_law(sign: float) -> np.ndarray:
    """One of two candidates by softmax(-sign E), E = -log p_AR + log p_theta: (256, 81)."""
    law = np.zeros_like(PRODUCTS)
    for state, p in enumerate(PRODUCTS):
        w = np.divide(P_AR, p, out=np.ones_like(p), where=p > 0) ** sign
        chosen = w[:, None] / (w[:, None] + w)
        law[state] = 2 * p * (chosen * p).sum(1)
    return law


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_low_energy_leads_to_the_autoregressive_model_and_high_energy_away_from_it(steps):
    divergence = {}
    for name, sign in (("-E", 1.0), ("none", 0.0), ("+E", -1.0)):
        law = chain_law(two_candidate_law(sign), steps)
        divergence[name] = (P_AR * np.log(P_AR / law)).sum()
    np.testing.assert_allclose(two_candidate_law(0.0), PRODUCTS, atol=1e-12)
    assert divergence["-E"] < divergence["none"] < divergence["+E"]


@pytest.mark.parametrize("sd", [1.0, 1.8])
def test_log_z_of_one_proposal_is_too_small_by_half_the_variance(sd):
    """For normal energies log Z = sd^2 / 2, and one proposal gives -E, with the mean 0."""
    generator = torch.Generator().manual_seed(0)
    energies = sd * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    estimates = log_mean_weights(energies)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean()) < 4 * error
    assert estimates.mean() + 4 * error < sd**2 / 2
