"""The dtype of the draws: the formula is that of the published steps, and float32 loses rare tokens."""

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edlm_hf.benchmarks.draws import (
    DrawSettings,
    draw,
    drawn_distribution,
    measure_draws,
    reveal_rates,
    zipf,
)
from edlm_hf.cli import app

V = 50_257


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def nats(drawn: np.ndarray, p: np.ndarray) -> float:
    """-log of the generative perplexity under p, per token."""
    return float(-(drawn * np.log(p)).sum())


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_uniforms_are_multiples_of_their_last_bit(dtype, bits):
    u = torch.rand(2**20, dtype=dtype, generator=torch.Generator().manual_seed(0)).double()
    scaled = u * 2.0**bits
    assert torch.equal(scaled, scaled.round())
    assert not torch.equal(scaled / 2, (scaled / 2).round())
    assert u.max() < 1


def test_without_rounding_every_step_reveals_every_token_at_its_rate():
    p = zipf(V, 1.0)
    np.testing.assert_allclose(reveal_rates(p, 7, bits=53), p / 7, rtol=1e-6)
    np.testing.assert_allclose(drawn_distribution(p, 16, bits=53), p, rtol=1e-6)


def test_a_token_that_float32_nearly_never_reveals():
    """p = 2^-20 at t = 1024/T: a = 64, so that the chance falls from 2^-30 to 2^-24 exp(-64)."""
    chance = reveal_rates(np.array([2.0**-20]), 1024, bits=24)
    np.testing.assert_allclose(chance, 2.0**-24 * math.exp(-64), rtol=1e-4)


def coarse_uniforms(bits: int):
    """In place of torch.rand: multiples of 2^-bits."""

    def rand(shape, *, dtype, device, generator):
        return torch.randint(2**bits, shape, generator=generator, device=device).to(dtype) / 2**bits

    return rand


@pytest.mark.parametrize(("vocabulary", "steps"), [(16, 64), (64, 32)])
def test_the_formula_is_the_distribution_of_the_published_steps(monkeypatch, vocabulary, steps):
    """Ten random bits, where few steps show what 24 bits show in a thousand."""
    positions, bits = 20_000, 10
    p = zipf(vocabulary, 1.0)
    monkeypatch.setattr(torch, "rand", coarse_uniforms(bits))
    tokens = draw(p, positions, steps, "float64", seed=0)
    shares = np.bincount(tokens.numpy(), minlength=vocabulary) / positions

    expected = drawn_distribution(p, steps, bits)
    noise = np.sqrt(expected * (1 - expected) / positions)
    assert (np.abs(shares - expected) < 5 * noise + 2e-3).all()
    assert np.abs(shares - p).sum() / 2 > 0.05  # the proposal is far away


def test_more_steps_lower_the_entropy_in_float32_and_not_in_float64():
    """V = 50,258. Nothing but the dtype changes: the proposal is the same in every step."""
    p = zipf(V, 1.0)
    exact = entropy(p)
    coarse = [drawn_distribution(p, steps, bits=24) for steps in (128, 512, 1024)]
    fine = drawn_distribution(p, 1024, bits=53)

    assert exact == pytest.approx(7.566, abs=5e-4)
    assert [round(entropy(drawn), 2) for drawn in coarse] == [7.19, 6.67, 6.36]
    assert entropy(fine) == pytest.approx(exact, abs=1e-6)

    # Under a judge that knows the truth
    assert [round(math.exp(nats(drawn, p)), -1) for drawn in coarse] == [1350, 840, 640]
    assert nats(fine, p) == pytest.approx(exact, abs=1e-6)


def test_drawn_tokens_stand_beside_the_computed_ones():
    settings = DrawSettings(steps=(8,), vocab_size=101, positions=2000)
    single, double = measure_draws(settings)
    assert (single["dtype"], double["dtype"]) == ("float32", "float64")
    for row in (single, double):
        assert abs(row["drawn"]["value"] - row["nats"]) < 4 * row["drawn"]["standard_error"]
        assert row["generative_perplexity"] == pytest.approx(math.exp(row["nats"]))
        assert row["unigram_entropy"]["unit"] == "bits"


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"steps": ()}, "at least one"),
        ({"steps": (8, 8)}, "only once"),
        ({"steps": (0,)}, "must be positive"),
        ({"vocab_size": 2}, "3 or more"),
        ({"exponent": -1.0}, "0 or more"),
        ({"positions": -1}, "0 or more"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        DrawSettings(**change)


def test_command_prints_a_table_or_json():
    command = ["benchmark", "draws", "--max-denoising-steps", "4,8", "--vocab-size", "101"]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert "| 8 | float32 |" in printed.stdout
    assert "computed" not in printed.stdout

    drawn = CliRunner().invoke(app, [*command, "--positions", "3"])
    assert "nats, drawn" in drawn.stdout

    rows = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [(row["steps"], row["dtype"]) for row in rows][:2] == [(4, "float32"), (4, "float64")]

    refused = CliRunner().invoke(app, [*command, "--exponent=-1"])
    assert refused.exit_code == 1
    assert "0 or more" in refused.output
