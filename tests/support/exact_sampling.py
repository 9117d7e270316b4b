"""Tokens of the shipped `generate()` in the exact test-bed, and their laws.

Each law is sampled 200,000 times. The total variation distance of so many draws over 81 sequences is about
0.6 sqrt(81 / N) / 2 = 0.006, and 0.012 is allowed.
"""

import numpy as np
import torch
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    TableDenoiser,
    marginals,
    perturbed,
    product_law,
    random_joint,
    state_index,
)

from edlm_hf import EDLMForMaskedDiffusion

N, TV = 200_000, 0.012
JOINT = random_joint(seed=3)
PROPOSAL = perturbed(marginals(JOINT), seed=1)
# (256, 81) p_theta(x_0 | x_t)
PRODUCTS = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])
# E(x_0, x_t), any function
ENERGY = np.random.default_rng(8).normal(size=(len(STATES), len(SEQUENCES))) * 1.5
EMPTY = torch.full((N, L), MASK)


def table_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    """The table of energies, after a check of what an energy is given."""
    assert candidate_ids.shape[:2] == proposal_log_probs.shape
    assert attention_mask.shape == noisy_ids.shape
    visible = (noisy_ids != MASK).unsqueeze(1)
    assert torch.equal(candidate_ids * visible, noisy_ids.unsqueeze(1) * visible.expand_as(candidate_ids))
    assert (candidate_ids != MASK).all()
    state, sequence = state_index(noisy_ids.numpy()), candidate_ids.numpy() @ (3 ** np.arange(L)[::-1])
    expected = np.log(PRODUCTS[state[:, None], sequence])
    assert np.abs(proposal_log_probs.numpy() - expected).max() < 1e-9
    return torch.tensor(ENERGY[state[:, None], sequence])


def model(proposal=PROPOSAL, energy=None, **choices):
    return EDLMForMaskedDiffusion.from_components(
        TableDenoiser(proposal),
        energy,
        mask_token_id=MASK,
        **choices,
    )


def sample(network=None, ids=EMPTY, seed=0, **arguments):
    network = model() if network is None else network
    return network.generate(ids, generator=torch.Generator().manual_seed(seed), **arguments)


def resampled_law(k: int = 2, energies=ENERGY, temperature: float = 1.0) -> np.ndarray:
    """p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y)) at every state: (256, 81)."""
    assert k == 2
    w = np.exp(-energies / temperature)
    return np.stack(
        [2 * p * ((v[:, None] / (v[:, None] + v)) * p[None]).sum(1) for p, v in zip(PRODUCTS, w, strict=True)]
    )
