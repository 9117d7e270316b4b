"""The laws of ReMDM and of Gibbs sweeps by enumeration.

They come from the second writing of the published samplers.
"""

import exact
import numpy as np
import pytest
from exact import MASK, SEQUENCES, STATES, L
from published_samplers import (
    exact_conditionals,
    forward_law,
    gibbs_law,
    remdm_chain_law,
    remdm_loop_alpha,
    remdm_sigma,
    remdm_step_law,
)


def test_remdm_sigma_by_hand():
    assert remdm_sigma("cap", 0.75, 0.5, 0.3) == 0.3
    assert remdm_sigma("cap", 0.75, 0.5, 0.9) == 0.5
    assert remdm_sigma("rescale", 0.75, 0.5, 0.3) == pytest.approx(0.15)
    assert remdm_sigma("rescale", 0.25, 0.2, 0.3) == 0.3  # (1 - .25) / .2 is more than one
    assert remdm_sigma("cap", 1.0, 0.9, 0.3) == 0
    assert remdm_sigma("cap", 0.1, 0.0, 0.3) == 0.3

    loop = {"t_on": 0.55, "t_off": 0.05}
    assert remdm_sigma("loop", 0.9, 0.9, 0.02, t=0.3, **loop) == 0.02
    assert remdm_sigma("loop", 0.9, 0.9, 0.02, t=0.55, **loop) == 0.02
    assert remdm_sigma("loop", 0.9, 0.85, 0.02, t=0.6, **loop) == 0
    assert remdm_sigma("loop", 0.95, 0.9, 0.02, t=0.05, **loop) == 0

    # alpha rises from 0 to .9 up to t_on, stays there up to t_off, then rises to 1
    expected = {1: 0, 0.55: 0.9, 0.3: 0.9, 0.05: 0.9, 0: 1}
    for t, alpha in expected.items():
        assert remdm_loop_alpha(t, **loop, alpha_on=0.9) == alpha
    assert remdm_loop_alpha(0.775, **loop, alpha_on=0.9) == pytest.approx(0.45)


def test_remdm_step_by_hand():
    p_theta = np.array([[0.5, 0.25, 0.25, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    noisy = [MASK, 1, 2]
    law = remdm_step_law(
        p_theta,
        noisy,
        MASK,
        alpha_s=0.75,
        alpha_t=0.5,
        sigma=0.2,
        given=(2,),
    )
    # (.75 - .8 x .5) / .5 = .7 and (1 - .75 - .2 x .5) / .5 = .3
    expected = [
        [0.35, 0.175, 0.175, 0.3],
        [0, 0.8, 0, 0.2],
        [0, 0, 1, 0],
    ]
    np.testing.assert_allclose(law, expected, atol=1e-15)

    with pytest.raises(ValueError, match="sigma_max"):
        remdm_step_law(p_theta, noisy, MASK, alpha_s=0.75, alpha_t=0.5, sigma=0.6)


JOINT = exact.random_joint(2)
TABLE = exact.perturbed(exact.marginals(JOINT), seed=3)
CLOCK = (1, 0.8, 0.5, 0.3, 0.02, 0)  # t, with alpha(t) = 1 - t


def remdm_laws(kind, eta, table=TABLE, **options):
    """The alphas of the times, the sigmas of the steps and the laws of the chain."""
    if kind == "loop":
        loop = {"t_on": 0.5, "t_off": 0.05}
        alphas = [remdm_loop_alpha(t, **loop, alpha_on=0.8) for t in CLOCK]
    else:
        loop = {}
        alphas = [1 - t for t in CLOCK]

    sigmas = []
    for t, alpha_t, alpha_s in zip(CLOCK, alphas, alphas[1:], strict=False):
        sigmas.append(remdm_sigma(kind, alpha_s, alpha_t, eta, t=t, **loop))

    laws = remdm_chain_law(table, alphas, sigmas, **options)
    return alphas, sigmas, laws


@pytest.mark.parametrize(
    ("kind", "eta"),
    [("cap", 0.2), ("cap", 1.0), ("rescale", 0.4), ("loop", 0.1)],
)
def test_remdm_keeps_the_law_of_the_masks(kind, eta):
    """Every position is a mask with 1 - alpha at every time, whatever the denoiser.

    The positions are independent of each other.
    """
    alphas, sigmas, laws = remdm_laws(kind, eta)
    assert max(sigmas) > 0

    masked = STATES == MASK
    for alpha, law in zip(alphas, laws, strict=True):
        for pattern in np.unique(masked, axis=0):
            num_masked = pattern.sum()
            expected = (1 - alpha) ** num_masked * alpha ** (L - num_masked)
            of_pattern = (masked == pattern).all(-1)
            assert law[of_pattern].sum() == pytest.approx(expected, abs=1e-12)


def test_remdm_keeps_the_marginals_of_the_forward_process_given_the_text():
    """With a denoiser that knows the text, q(z_t | x) is the forward process's, remasked or not."""
    text = np.zeros(len(SEQUENCES))
    text[37] = 1
    table = np.zeros((len(STATES), L, 3))
    table[:, np.arange(L), SEQUENCES[37]] = 1

    alphas, _, laws = remdm_laws("rescale", 0.7, table=table)
    for alpha, law in zip(alphas, laws, strict=True):
        np.testing.assert_allclose(law, forward_law(text, alpha), atol=1e-12)


def test_remdm_without_remasking_is_the_ancestral_chain():
    steps = 5
    alphas = [n / steps for n in range(steps + 1)]
    law = remdm_chain_law(TABLE, alphas, [0.0] * steps)[-1]

    products = np.stack([exact.product_law(TABLE, s) for s in range(len(STATES))])
    ancestral = exact.chain_law(products, steps)
    np.testing.assert_allclose(law[exact.state_index(SEQUENCES)], ancestral, atol=1e-12)

    # and with remasking it is another one
    remasked = remdm_chain_law(TABLE, alphas, [0.0, 0.4, 0.4, 0.25, 0])[-1]
    assert np.abs(remasked - law).sum() > 0.01


def test_remdm_keeps_a_prompt():
    start = (2, MASK, MASK, 0)
    kept = (STATES[:, 0] == 2) & (STATES[:, 3] == 0)

    _, _, laws = remdm_laws("cap", 0.3, start=start, given=(0, 3))
    assert laws[-1][kept].sum() == pytest.approx(1, abs=1e-12)

    # what is not given is masked again
    _, _, laws = remdm_laws("cap", 0.3, start=start)
    assert laws[2][kept].sum() < 0.9


PRODUCTS = np.stack([exact.product_law(exact.marginals(JOINT), s) for s in range(len(STATES))])


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("masked_again", [1, 2, 3, 4])
def test_gibbs_keeps_the_law_of_a_consistent_denoiser(masked_again, alpha):
    """One position at a time goes by its marginals, several by their joint conditional.

    Texts are full or have masks.
    """
    law = forward_law(JOINT, alpha)
    transition = gibbs_law(exact_conditionals(JOINT), masked_again)
    np.testing.assert_allclose(transition.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(law @ transition, law, atol=1e-12)

    by_marginals = law @ gibbs_law(PRODUCTS, masked_again)
    if masked_again == 1:
        np.testing.assert_allclose(by_marginals, law, atol=1e-12)
    else:
        assert np.abs(by_marginals - law).sum() > 0.01


def test_gibbs_moves_what_is_free_and_nothing_else():
    state = np.array([2, 0, MASK, 1])
    row = gibbs_law(PRODUCTS, 1, given=(3,))[exact.state_index(state)]
    reached = STATES[row > 0]
    assert (reached[:, 2] == MASK).all()
    assert (reached[:, 3] == 1).all()
    assert ((reached != state).sum(-1) <= 1).all()

    # half of the scans ask position 0, and p(x_0 = v | rest) is in the table
    scanned = exact.state_index(np.array([MASK, 0, MASK, 1]))
    conditional = exact.marginals(JOINT)[scanned, 0]
    for token in (0, 1):
        moved = exact.state_index(np.array([token, 0, MASK, 1]))
        assert row[moved] == pytest.approx(conditional[token] / 2, abs=1e-12)

    # repeated sweeps forget where they began
    full = exact.state_index(SEQUENCES)
    transition = gibbs_law(PRODUCTS, 1)[np.ix_(full, full)]
    sweeps = np.linalg.matrix_power(transition, 400)
    np.testing.assert_allclose(sweeps, np.broadcast_to(JOINT, sweeps.shape), atol=1e-6)
