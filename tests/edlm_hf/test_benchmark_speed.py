"""Speed and memory: both sides run the same networks, and the page says what was measured."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from edlm_hf.benchmarks import speed
from edlm_hf.benchmarks.peak_memory import peak_bytes
from edlm_hf.benchmarks.published import AutoregressiveEnergy
from edlm_hf.benchmarks.speed import fit_exponents, run_benchmark
from edlm_hf.benchmarks.speed_contest import Contest, random_model
from edlm_hf.benchmarks.speed_settings import Comparison, SpeedSettings
from edlm_hf.cli import app

TINY = {
    "vocab_sizes": (11,),
    "batch_sizes": (2,),
    "steps": (2, 4),
    "planned_steps": (8,),
    "length": 8,
    "width": 16,
    "blocks": 1,
    "candidates": 2,
    "repeats": 2,
}
MASK, START = 10, 11


def one_step(num_candidates: int) -> Comparison:
    return Comparison("ar", vocab_size=11, length=8, steps=1, batch_size=2, num_candidates=num_candidates, own_steps=1)


def test_both_sides_run_the_same_networks_equally_often():
    settings = SpeedSettings(**TINY)
    comparison = one_step(num_candidates=2)
    contest = Contest(random_model(comparison, settings), comparison, settings)
    for side in ("published", "ours"):
        timing = contest.time(side, seed=0)
        assert timing.denoiser_calls == timing.energy_calls == 1
        assert 0 < timing.energy_seconds < timing.seconds


def test_both_energies_agree():
    """The published energy of the benchmark's model is the model's own."""
    model = random_model(one_step(num_candidates=3), SpeedSettings(**TINY))
    noisy = torch.full((2, 8), MASK)
    candidates = torch.randint(0, 10, (2, 3, 8))  # (B, k, L)
    published = AutoregressiveEnergy(
        model.energy_model,
        vocab_size=11,
        mask_token_id=MASK,
        start_token_id=START,
    )

    with torch.no_grad():
        log_probs = model(noisy).logits[..., :10].log_softmax(-1)
        proposal = log_probs.gather(-1, candidates.transpose(1, 2)).sum(1)  # (B, k)
        theirs = published(candidates.transpose(0, 1), noisy, proposal.T).T
        torch.testing.assert_close(theirs, model.energy(candidates, noisy), atol=1e-4, rtol=0)


def test_peak_counts_what_lives_at_the_same_time():
    def work():
        for _ in range(3):
            kept = torch.zeros(250_000)  # 1 MB
            (kept + 1).double()  # 1 MB and 2 MB more

    # The last `kept` dies after its successor is made
    assert 4_000_000 <= peak_bytes(work, torch.device("cpu")) < 5_100_000


def test_exponents_are_slopes():
    rows = [{"axis": "T", "value": x, "seconds": 3 * x**0.5} for x in (1, 2, 4)]
    rows += [{"axis": "L", "value": x, "seconds": x**2} for x in (8, 16)]
    rows += [{"axis": "B", "value": 1, "seconds": 1}]
    assert fit_exponents(rows) == pytest.approx({"T": 0.5, "L": 2})


def test_sizes_are_varied_one_at_a_time():
    settings = SpeedSettings(**TINY | {"modes": ("ar",)})
    varied = {}
    for axis, comparison in settings.scaling_comparisons():
        varied.setdefault(axis, []).append(comparison)
    assert [comparison.length for comparison in varied["L"]] == [2, 4, 8, 16]
    assert [comparison.own_steps for comparison in varied["T"]] == [1, 2, 4, 8]
    assert [comparison.batch_size for comparison in varied["B"]] == [2, 4, 8]
    # One candidate needs no energy
    assert [comparison.num_candidates for comparison in varied["k"]] == [2, 4]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder, result, and what was said of the progress."""
    output = tmp_path_factory.mktemp("speed")
    progress = []
    settings = SpeedSettings(scaling=True, **TINY)
    result = run_benchmark(settings, output, lambda *said: progress.append(said))
    return output, result, progress


def test_every_comparison_is_measured(measured):
    output, result, progress = measured
    assert progress[-1][0] == progress[-1][1]
    stored = json.loads((output / "results.json").read_text())
    assert stored["comparisons"] == result["comparisons"]
    assert {"date", "torch", "command"} <= set(stored["environment"])

    measured_modes = [(row["mode"], row["steps"]) for row in stored["comparisons"]]
    with_steps = [("mdlm", 2), ("mdlm", 4), ("ar", 2), ("ar", 4)]
    assert measured_modes == [*with_steps, ("first_hitting", 4), ("planned", 256)]


def test_ratios_are_of_medians(measured):
    _, result, _ = measured
    for row in result["comparisons"]:
        published, ours = row["published"], row["ours"]
        assert row["speedup"] == pytest.approx(published["seconds"] / ours["seconds"])
        assert len(ours["all_seconds"]) == 2
        assert ours["peak_bytes"] > 0
        if row["mode"] == "ar":
            assert ours["energy_share"] > 0
        else:
            assert ours["energy_calls_per_row"] == 0


def test_calls_are_those_of_the_mode(measured):
    _, result, _ = measured
    first_hitting, planned = result["comparisons"][-2:]
    assert first_hitting["ours"]["denoiser_calls_per_row"] == 8
    assert planned["own_steps"] == planned["ours"]["denoiser_calls_per_row"] == 8


def test_the_page_has_every_comparison_and_the_scaling(measured):
    output, result, _ = measured
    assert set(result["scaling"]["exponents"]) == {"L", "V", "k", "T", "B"}
    page = (output / "results.md").read_text()
    assert page.count("| first_hitting | 11 | 2 | 4 | 1 |") == 1
    assert page.count("| planned | 11 | 2 | 256 / 8 | 1 |") == 1
    assert "exponent" in page
    files = {path.name for path in output.iterdir()}
    assert files == {"results.json", "results.md", *result["plots"]}


def test_published_is_left_out_where_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "free_bytes", lambda device: 1000)
    settings = SpeedSettings(**TINY | {"modes": ("mdlm",)})
    result = run_benchmark(settings, tmp_path, lambda *_: None)
    for row in result["comparisons"]:
        assert "published" not in row
        assert "needs about" in row["left_out"]
    assert "| - |" in (tmp_path / "results.md").read_text()


def call(*arguments):
    return CliRunner().invoke(app, ["benchmark", "speed", *map(str, arguments)])


SMALL = [
    "--quick",
    "--vocab-sizes",
    "11",
    "--max-denoising-steps",
    2,
    "--length",
    8,
    "--hidden-dim",
    16,
    "--n-blocks",
    1,
    "--repeats",
    1,
]


def test_command_writes_and_prints(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("--output", tmp_path, *SMALL, "--modes", "mdlm,ar", "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["comparisons"]) == 2
    assert "matplotlib" in result.stderr
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--modes", "magic", "only mdlm, ar, first_hitting, planned"),
        ("--planned-steps", "7", "for 8 and 16 only"),
        ("--max-denoising-steps", "0", "must be positive"),
        ("--energy-window", "1.5", "must lie in [0, 1]"),
        ("--dtype", "float8", "float32, bfloat16"),
        ("--vocab-sizes", "2", "two tokens and the mask"),
        ("--batch-sizes", "some", "whole numbers like 16,64"),
    ],
)
def test_wrong_options_are_refused_with_advice(tmp_path, option, value, advice):
    result = call("--output", tmp_path, *SMALL, option, value)
    assert result.exit_code != 0
    assert advice in " ".join(result.output.replace("│", " ").split())
