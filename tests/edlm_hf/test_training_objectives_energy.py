"""Losses of energies against recorded values of the published code and against their exact optima."""

import math

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, STATES, agrees, marginals, perturbed, product_law, random_joint
from published import golden, write_checkpoint

from edlm_hf import EDLMEnergyModel
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.training.objectives import (
    binary_nce_loss,
    nce_readings,
    ranking_nce_loss,
    summarise_readings,
)


def test_binary_loss_is_the_published_one_up_to_its_1e_8():
    data = golden("d_nce_loss")
    for prefix in ("", "full_"):
        positive, negative = data[f"{prefix}energy_pos"], data[f"{prefix}energy_neg"]
        exact = binary_nce_loss(positive.double(), negative.double().unsqueeze(1))
        published = -((-positive.double()).sigmoid() + 1e-8).log() - (negative.double().sigmoid() + 1e-8).log()
        torch.testing.assert_close(published.float(), data[f"{prefix}loss"], rtol=1e-5, atol=1e-5)
        agree = (exact - published).abs() < 1e-4
        torch.testing.assert_close(
            exact[agree].float(),
            data[f"{prefix}loss"][agree],
            rtol=1e-4,
            atol=1e-4,
        )
        assert (exact >= published).all()
        # Where they differ, the published loss is capped
        assert agree.sum() >= 8


@torch.no_grad()
def test_published_network_and_loss_together(tmp_path):
    data = golden("d_nce_loss")
    model = EDLMEnergyModel.from_pretrained(
        write_checkpoint(
            tmp_path,
            "model_nce",
            time_conditioning=True,
        )
    )
    candidates = torch.stack([data["full_x0"], data["full_x0_neg"]], dim=1)
    sigma = make_schedule("loglinear").total(data["full_t"])
    energies = model(candidates, data["full_xt"], timesteps=sigma).energy
    loss = binary_nce_loss(energies[:, 0], energies[:, 1:])
    torch.testing.assert_close(loss, data["full_loss"], rtol=0, atol=1e-3)


def test_large_energies_cost_what_they_are():
    loss = binary_nce_loss(torch.tensor([40.0]), torch.tensor([[-40.0]]))
    assert loss.item() == pytest.approx(80)


@pytest.mark.parametrize("c", [0.0, -1.5, 4.0])
def test_a_constant_energy_costs_two_log_two_and_the_log_of_a_cosh(c):
    loss = binary_nce_loss(torch.tensor([c]), torch.tensor([[c, c]])).item()
    assert loss == pytest.approx(2 * math.log(2) + 2 * math.log(math.cosh(c / 2)), abs=1e-6)
    assert ranking_nce_loss(torch.tensor([c]), torch.tensor([[c, c]])).item() == pytest.approx(math.log(3))


@pytest.fixture(scope="module")
def two_laws():
    """q(x | x_t) and p_theta(x | x_t) over the sequences that agree with a state, for states of 2, 3 and 4 masks."""
    joint = random_joint()
    table = perturbed(marginals(joint), seed=1)

    laws = []
    for state in ([MASK] * 4, [MASK, 1, MASK, MASK], [0, MASK, 2, MASK]):
        s = int(np.flatnonzero((STATES == state).all(-1))[0])
        possible = agrees(STATES[s])
        q, p = joint[possible] / joint[possible].sum(), product_law(table, s)[possible]
        assert len(q) == 3 ** (np.array(state) == MASK).sum() and len(SEQUENCES) == 81
        laws.append((torch.tensor(q), torch.tensor(p)))

    return laws


def minimised(loss_of, size):
    """The table of energies (size,) that minimises an expected loss, by Newton's method, and the minimum."""
    energies = torch.zeros(size, dtype=torch.float64)
    for _ in range(60):
        slope = torch.autograd.functional.jacobian(loss_of, energies)
        curvature = torch.autograd.functional.hessian(loss_of, energies)
        step = torch.linalg.lstsq(
            curvature + 1e-14 * torch.eye(size, dtype=torch.float64),
            slope,
        ).solution
        energies -= step.clamp(-0.5, 0.5)
    return energies, loss_of(energies).item()


def test_binary_nce_of_a_table_reaches_the_log_ratio_and_the_jensen_shannon_divergence(two_laws):
    for q, p in two_laws:

        def expected(energies, q=q, p=p):
            n = len(energies)
            pairs = binary_nce_loss(energies.repeat_interleave(n), energies.repeat(n).unsqueeze(1)).view(
                n,
                n,
            )
            return (q[:, None] * p[None] * pairs).sum()

        energies, loss = minimised(expected, len(q))
        assert (energies + (q / p).log()).abs().max() < 1e-3
        middle = (q + p) / 2
        js = ((q * (q / middle).log()).sum() + (p * (p / middle).log()).sum()) / 2
        assert loss == pytest.approx(2 * math.log(2) - 2 * js.item(), abs=1e-3)
        assert (p * (-energies).exp()).sum().item() == pytest.approx(1, abs=1e-3)  # Z = 1


def test_ranking_nce_of_a_table_reaches_the_log_ratio_up_to_a_constant(two_laws):
    for q, p in two_laws:

        def expected(energies, q=q, p=p):
            n = len(energies)
            pairs = ranking_nce_loss(energies.repeat_interleave(n), energies.repeat(n).unsqueeze(1)).view(
                n,
                n,
            )
            return (q[:, None] * p[None] * pairs).sum()

        energies, loss = minimised(expected, len(q))
        difference = energies + (q / p).log()
        assert (difference - difference.mean()).abs().max() < 1e-3
        assert loss < math.log(2)


def test_readings_of_known_energies():
    positive, negative = torch.tensor([-2.0, 1.0]), torch.tensor([[1.0, 3.0], [-1.0, 1.0]])
    readings = nce_readings(positive, negative)
    torch.testing.assert_close(readings["nce_loss"], binary_nce_loss(positive, negative))
    torch.testing.assert_close(readings["jensen_shannon"], math.log(2) - readings["nce_loss"] / 2)
    assert readings["accuracy"].tolist() == [1.0, 0.25]
    summary = summarise_readings({name: float(values.mean()) for name, values in readings.items()})
    assert summary["energy_data"] == -0.5 and summary["energy_draws"] == 1.0
    assert summary["energy_draws_sd"] == pytest.approx(negative.std(unbiased=False).item())
