"""Autoregressive energies by enumeration on the exact test-bed (invariants C3 and C4 of docs/mathematics)."""

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    TableCausalLM,
    TableDenoiser,
    agrees,
    chain_law,
    marginals,
    perturbed,
    product_law,
    random_joint,
)

from edlm_hf import EDLMForMaskedDiffusion

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def tilted_laws(energy_type, proposal, joint, dtype=torch.float64, start=4):
    """p_theta(x_0|x_t) exp(-E) of every state, not normalised: (256, 81), energies from the shipped model."""
    model = EDLMForMaskedDiffusion.from_components(
        TableDenoiser(proposal, dtype), TableCausalLM(joint, dtype, start), energy_type=energy_type, mask_token_id=MASK
    )

    laws = np.zeros((len(STATES), len(SEQUENCES)))
    for s, state in enumerate(STATES):
        fits = agrees(state)
        candidates = torch.tensor(SEQUENCES[fits]).unsqueeze(0)
        energy = model.energy(candidates, torch.tensor(state).unsqueeze(0))
        assert energy.dtype == dtype
        laws[s, fits] = product_law(proposal, s)[fits] * np.exp(-energy[0].double().numpy())

    return laws


@pytest.fixture(scope="module")
def tables():
    joint = random_joint(seed=3)
    other = np.random.default_rng(5).dirichlet(np.ones(len(SEQUENCES)))
    return joint, 0.7 * joint + 0.3 * other, perturbed(marginals(joint), seed=1)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("start", [4, None])
def test_carry_over_energy_is_normalised_in_every_state(tables, dtype, tolerance, start):
    _, p_ar, proposal = tables
    laws = tilted_laws("coar", proposal, p_ar, dtype, start)
    assert np.abs(laws.sum(-1) - 1).max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_autoregressive_energy_normalises_to_the_marginal_of_the_visible_tokens(
    tables,
    dtype,
    tolerance,
):
    _, p_ar, proposal = tables
    laws = tilted_laws("ar", proposal, p_ar, dtype)
    visible = np.array([p_ar[agrees(state)].sum() for state in STATES])
    assert np.abs(laws.sum(-1) - visible).max() < tolerance


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_exactly_tilted_chain_has_the_autoregressive_law_for_every_number_of_steps(tables, steps):
    _, p_ar, proposal = tables
    laws = tilted_laws("ar", proposal, p_ar)
    law = chain_law(laws / laws.sum(-1, keepdims=True), steps)
    assert np.abs(law - p_ar).max() < 1e-12
    coar = tilted_laws("coar", proposal, p_ar)
    # The carry-over energy ignores the right
    assert steps == 1 or np.abs(chain_law(coar, steps) - p_ar).max() > 1e-3


def test_row_that_begins_with_the_start_token_is_scored_from_its_second_token_on(tables):
    _, p_ar, _ = tables

    class Denoiser(torch.nn.Module):  # three tokens, mask 3, start 4; proposes uniformly
        vocab_size = 5

        def forward(self, input_ids, attention_mask=None):
            logits = torch.zeros(*input_ids.shape, 5, dtype=torch.float64)
            logits[..., 4] = -torch.inf
            return type("Output", (), {"logits": logits})

    causal = TableCausalLM(p_ar)
    model = EDLMForMaskedDiffusion.from_components(
        Denoiser(),
        causal,
        energy_type="ar",
        mask_token_id=MASK,
    )
    text = torch.tensor([[0, 2, 1]])
    plain = model.energy(text.unsqueeze(1), torch.full((1, 3), MASK))
    started = torch.cat([torch.tensor([[4]]), text], dim=1)
    noisy = torch.tensor([[4, MASK, MASK, MASK]])
    assert torch.allclose(model.energy(started.unsqueeze(1), noisy), plain, atol=1e-12)


def test_candidates_of_one_row_do_not_touch_another(tables):
    _, p_ar, proposal = tables
    model = EDLMForMaskedDiffusion.from_components(
        TableDenoiser(proposal), TableCausalLM(p_ar), energy_type="ar", mask_token_id=MASK
    )
    noisy = torch.tensor([[MASK] * L, [0, MASK, 2, MASK], [MASK, 1, 1, MASK]])
    rng = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 3, (3, 5, L), generator=rng)
    candidates = torch.where(noisy.unsqueeze(1) == MASK, draws, noisy.unsqueeze(1))
    batch = model.energy(candidates, noisy)

    for row in range(3):
        for j in range(5):
            alone = model.energy(candidates[row : row + 1, j : j + 1], noisy[row : row + 1])
            assert torch.allclose(alone[0, 0], batch[row, j], atol=1e-12)
