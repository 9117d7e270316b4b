"""The benchmarks: the published samplers have their enumerated law, and the measurements measure what they say."""

import json
import sys

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    START,
    STATES,
    L,
    TableCausalLM,
    TableDenoiser,
    chain_law,
    marginals,
    perturbed,
    product_law,
    random_joint,
)
from published import golden, write_checkpoint
from typer.testing import CliRunner

from edlm_hf import MDLMForMaskedLM
from edlm_hf.benchmarks import speed
from edlm_hf.benchmarks.published import AutoregressiveEnergy, clean_probs, reverse_draw, sample_published
from edlm_hf.benchmarks.speed import Contest, Point, SpeedSettings, random_model, run_benchmark
from edlm_hf.cli import app

N, TV = 200_000, 0.012
JOINT = random_joint(seed=3)
P_AR = 0.6 * JOINT + 0.4 * random_joint(seed=11)
PROPOSAL = perturbed(marginals(JOINT), seed=1)
PRODUCTS = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])  # (256, 81) p_theta(x_0 | x_t)
TINY = {"vocab_sizes": (11,), "batch_sizes": (2,), "steps": (2, 4), "length": 8, "width": 16, "blocks": 1}
TINY |= {"candidates": 2, "repeats": 2, "planned_steps": (8,)}


def sample(steps, ids=None, **arguments):
    ids = torch.full((N, L), MASK) if ids is None else ids
    generator = torch.Generator().manual_seed(0)
    return sample_published(TableDenoiser(PROPOSAL), ids, MASK, steps, generator=generator, float64=True, **arguments)


def distance(sequences, law):
    assert abs(law.sum() - 1) < 1e-12
    index = sequences.numpy() @ (3 ** np.arange(L)[::-1])
    return np.abs(np.bincount(index, minlength=81) / len(index) - law).sum() / 2


def two_candidate_law(carry_over: bool) -> np.ndarray:
    """p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y)) at every state, w = exp(-E): (256, 81)."""
    log_p_ar = np.zeros((L, len(SEQUENCES)))  # log p_AR(x_i | x_<i)
    for i in range(L):
        for number, x in enumerate(SEQUENCES):
            before, upto = (P_AR[(SEQUENCES[:, :j] == x[:j]).all(-1)].sum() for j in (i, i + 1))
            log_p_ar[i, number] = np.log(upto / before)
    law = np.zeros_like(PRODUCTS)
    for s, p in enumerate(PRODUCTS):
        counted = (STATES[s] == MASK) if carry_over else np.ones(L, dtype=bool)
        w = np.divide(np.exp(log_p_ar[counted].sum(0)), p, out=np.ones_like(p), where=p > 0)
        law[s] = 2 * p * ((w[:, None] / (w[:, None] + w)) * p).sum(1)
    return law


def test_published_mdlm_has_its_enumerated_law():
    tokens, denoiser_calls, energy_calls = sample(3)
    assert distance(tokens, chain_law(PRODUCTS, 3)) < TV
    assert (denoiser_calls, energy_calls) == (3, 0)


@pytest.mark.parametrize("carry_over", [False, True])
def test_published_edlm_has_its_enumerated_law(carry_over):
    energy = AutoregressiveEnergy(TableCausalLM(P_AR), 4, MASK, START, carry_over)
    tokens, denoiser_calls, energy_calls = sample(2, energy=energy, num_candidates=2)
    own, other = (chain_law(two_candidate_law(c), 2) for c in (carry_over, not carry_over))
    assert distance(tokens, own) < min(TV, distance(tokens, other))  # the two are 0.012 apart
    assert distance(tokens, chain_law(PRODUCTS, 2)) > 4 * TV
    assert (denoiser_calls, energy_calls) == (2, 2)


def test_published_energy_acts_in_its_window_and_keeps_visible_tokens():
    energy = AutoregressiveEnergy(TableCausalLM(P_AR), 4, MASK, START)
    ids, tilted = torch.tensor([[MASK, 0, MASK, MASK]]).repeat(N, 1), two_candidate_law(carry_over=False)
    tokens, _, energy_calls = sample(4, ids, energy=energy, num_candidates=2, energy_window=0.5)
    law = chain_law(lambda n: tilted if n >= 2 else PRODUCTS, 4, start=[MASK, 0, MASK, MASK])
    assert energy_calls == 3  # t = 1, 3/4, 1/2
    assert distance(tokens, law) < TV


def test_network_output_is_reused_while_nothing_changes():
    denoiser = TableDenoiser(PROPOSAL)
    result = sample_published(denoiser, torch.full((1, L), MASK), MASK, 64, generator=torch.Generator().manual_seed(0))
    assert result.denoiser_calls == denoiser.calls <= L + 1


def test_one_step_equals_the_recorded_one(tmp_path, monkeypatch):
    """Given the uniforms of golden (f), the draws are those of the published code, in float32."""
    step, model = golden("f_step"), MDLMForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit"))
    mask = model.config.mask_token_id
    with torch.no_grad():
        p_x0 = clean_probs(model.eval(), step["xt"], mask, torch.float32)
    torch.testing.assert_close(p_x0, step["p_x0"], atol=1e-5, rtol=0)
    for row, t in enumerate(step["t"].tolist()):
        monkeypatch.setattr(torch, "rand", lambda *shape, row=row, **_: step["uniform"][row : row + 1])
        one, s = slice(row, row + 1), t - step["dt"].item()
        assert torch.equal(
            reverse_draw(step["p_x0"][one], step["xt"][one], t, s, mask, None), step["x_next_cache"][one]
        )


def test_both_sides_run_the_same_networks_equally_often():
    point = Point("ar", vocab_size=11, length=8, steps=1, batch_size=2, num_candidates=2, own_steps=1)
    contest = Contest(random_model(point, SpeedSettings(**TINY)), point, SpeedSettings(**TINY))
    for side in ("published", "ours"):
        run = contest.run(side, seed=0)
        assert run.denoiser_calls == run.energy_calls == 1
        assert 0 < run.energy_seconds < run.seconds


def test_both_energies_agree():
    """The published energy of the benchmark's model is the model's own."""
    point = Point("ar", vocab_size=11, length=8, steps=1, batch_size=2, num_candidates=3, own_steps=1)
    model = random_model(point, SpeedSettings(**TINY))
    noisy, candidates = torch.full((2, 8), 10), torch.randint(0, 10, (2, 3, 8))
    with torch.no_grad():
        log_p = model(noisy).logits[..., :10].log_softmax(-1).gather(-1, candidates.transpose(1, 2)).sum(1)
        theirs = AutoregressiveEnergy(model.energy_model, 11, 10, 11)(candidates.transpose(0, 1), noisy, log_p.T).T
        torch.testing.assert_close(theirs, model.energy(candidates, noisy), atol=1e-4, rtol=0)


def test_peak_counts_what_lives_at_the_same_time():
    def work():
        for _ in range(3):
            kept = torch.zeros(250_000)  # 1 MB
            (kept + 1).double()  # 1 MB and 2 MB more

    assert 4_000_000 <= speed.peak_bytes(work, torch.device("cpu")) < 5_100_000  # the last `kept` dies after its heir


def test_exponents_are_slopes():
    rows = [{"axis": "T", "value": x, "seconds": 3 * x**0.5} for x in (1, 2, 4)]
    rows += [{"axis": "L", "value": x, "seconds": x**2} for x in (8, 16)] + [{"axis": "B", "value": 1, "seconds": 1}]
    assert speed.fit_exponents(rows) == pytest.approx({"T": 0.5, "L": 2})


def test_results_hold_every_comparison_and_the_scaling(tmp_path):
    settings, seen = SpeedSettings(scaling=True, **TINY), []
    result = run_benchmark(settings, tmp_path, lambda *progress: seen.append(progress))
    assert seen[-1][0] == seen[-1][1]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["comparisons"] == result["comparisons"] and {"date", "torch", "command"} <= set(stored["environment"])
    assert [(row["mode"], row["steps"]) for row in stored["comparisons"]] == [
        ("mdlm", 2), ("mdlm", 4), ("ar", 2), ("ar", 4), ("first_hitting", 4), ("planned", 32)
    ]  # fmt: skip
    for row in stored["comparisons"]:
        assert row["speedup"] == pytest.approx(row["published"]["seconds"] / row["ours"]["seconds"])
        assert row["ours"]["peak_bytes"] > 0 and len(row["ours"]["all_seconds"]) == 2
        assert row["ours"]["energy_calls_per_row"] == 0 if row["mode"] != "ar" else row["ours"]["energy_share"] > 0
    first_hitting, planned = stored["comparisons"][-2:]
    assert first_hitting["ours"]["denoiser_calls_per_row"] == 8
    assert planned["own_steps"] == planned["ours"]["denoiser_calls_per_row"] == 8
    assert set(stored["scaling"]["exponents"]) == {"L", "V", "k", "T", "B"}
    table = (tmp_path / "results.md").read_text()
    assert table.count("| first_hitting | 11 | 2 | 4 | 1 |") == 1 and "exponent" in table
    assert table.count("| planned | 11 | 2 | 32 / 8 | 1 |") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", *result["plots"]}


def test_published_is_left_out_where_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "free_bytes", lambda device: 1000)
    result = run_benchmark(SpeedSettings(**TINY | {"modes": ("mdlm",)}), tmp_path, lambda *_: None)
    assert all("published" not in row and "needs about" in row["left_out"] for row in result["comparisons"])
    assert "| - |" in (tmp_path / "results.md").read_text()


def call(*arguments):
    return CliRunner().invoke(app, ["benchmark", "speed", *map(str, arguments)])


SMALL = ["--quick", "--vocab-sizes", "11", "--steps", 2, "--length", 8, "--width", 16, "--blocks", 1, "--repeats", 1]


def test_command_writes_and_prints(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("--output", tmp_path, *SMALL, "--modes", "mdlm,ar", "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["comparisons"]) == 2
    assert "matplotlib" in result.stderr and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--modes", "magic", "only mdlm, ar, first_hitting, planned"),
        ("--planned-steps", "7", "for 8 and 16 only"),
        ("--steps", "0", "must be positive"),
        ("--window", "1.5", "must lie in [0, 1]"),
        ("--dtype", "float8", "float32, bfloat16"),
        ("--vocab-sizes", "2", "two tokens and the mask"),
        ("--batch-sizes", "some", "whole numbers like 16,64"),
    ],
)
def test_wrong_options_are_refused_with_advice(tmp_path, option, value, advice):
    result = call("--output", tmp_path, *SMALL, option, value)
    assert result.exit_code != 0
    assert advice in " ".join(result.output.replace("│", " ").split())
