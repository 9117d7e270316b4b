"""`edlm benchmark speed`: `generate()` against the published samplers on the same weights.

The two sides of a comparison run in one process and alternately (published, ours, published, ours,
...) after one warm-up each, so that a machine that gets slower or faster meanwhile hits both. Read
the ratios, not the seconds.

Peak memory (`peak_memory.py`) is measured in a run of its own, of both sides in the same way, and
with at most 128 steps: the published samplers take the same memory at every T, and ours less with
more steps, which reveal less each.
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edlm_hf.benchmarks.peak_memory import free_bytes, peak_bytes
from edlm_hf.benchmarks.report import Progress, environment, write_results
from edlm_hf.benchmarks.speed_contest import Contest, Timing, random_model
from edlm_hf.benchmarks.speed_report import markdown, plot
from edlm_hf.benchmarks.speed_settings import AXES, OURS, PUBLISHED, QUICK, Comparison, SpeedSettings

WARM_UP_STEPS, MEMORY_STEPS = 4, 128


def run_benchmark(settings: SpeedSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything, and renew results.json and results.md after every comparison.

    Args:
        advance: called with (runs finished, runs in all, what runs now).
    """
    output.mkdir(parents=True, exist_ok=True)
    comparisons = list(settings.comparisons())
    progress = Progress(advance, number_of_runs(settings))
    seeds = {"weights": settings.seed, "runs": list(range(1, settings.repeats + 1))}
    result = {
        "environment": environment(torch.device(settings.device)) | {"seeds": seeds},
        "settings": dataclasses.asdict(settings),
        "comparisons": [],
    }

    # 1. Both sides against each other, on one model per vocabulary, of which one is in memory
    models = {}
    for comparison in comparisons:
        progress.start(label_of(comparison))
        vocab_size = comparison.vocab_size
        if vocab_size not in models:
            models = {vocab_size: random_model(comparison, settings)}
        contest = Contest(models[vocab_size], comparison, settings)
        result["comparisons"].append(compare(contest, progress))
        write_results(result, markdown(result), output)
    models.clear()

    # 2. Ours against each size alone
    if settings.scaling:
        progress.start("scaling")
        result["scaling"] = measure_scaling(settings, progress)
        write_results(result, markdown(result), output)

    # 3. Plots
    result["plots"] = plot(result, output)
    write_results(result, markdown(result), output)
    return result


def label_of(comparison: Comparison) -> str:
    sizes = f"V={comparison.vocab_size} B={comparison.batch_size} T={comparison.steps}"
    return f"{comparison.mode} {sizes}"


def number_of_runs(settings: SpeedSettings) -> int:
    """A warm-up, the timed runs and one for the memory of each side. Scaling has no memory."""
    runs = len(list(settings.comparisons())) * 2 * (settings.repeats + 2)
    if settings.scaling:
        runs += len(list(settings.scaling_comparisons())) * (settings.repeats + 1)
    return runs


def compare(contest: Contest, progress: Progress) -> dict:
    """Medians of both sides and their ratios. A side that does not fit into memory is left out."""
    comparison = contest.comparison
    needed = published_bytes(comparison)
    free = free_bytes(contest.device)
    sides = (OURS,) if needed > free else (PUBLISHED, OURS)

    # 1. Warm-ups, then timed runs in turn
    timings = {side: [] for side in sides}
    for side in sides:
        contest.time(side, seed=0, steps=min(WARM_UP_STEPS, comparison.steps_of(side)))
        progress.finish_one()
    for seed in range(1, contest.settings.repeats + 1):
        for side in sides:
            timings[side].append(contest.time(side, seed))
            progress.finish_one()

    # 2. Memory
    result = dataclasses.asdict(comparison)
    for side in sides:
        result[side] = summary(timings[side], comparison)
        result[side]["peak_bytes"] = peak_bytes_of(contest, side)
        progress.finish_one()

    # 3. Ratios
    if PUBLISHED not in sides:
        result["left_out"] = f"published needs about {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free"
        return result
    return result | ratios(result[PUBLISHED], result[OURS])


def peak_bytes_of(contest: Contest, side: str) -> int:
    """Peak memory of one run of a side."""
    steps = min(MEMORY_STEPS, contest.comparison.steps_of(side))
    return peak_bytes(lambda: contest.time(side, seed=1, steps=steps), contest.device)


def ratios(published: dict, ours: dict) -> dict:
    """How many times faster ours is, and its part of the memory.

    The range is over pairs of runs. The ratio of the fastest runs is the least touched by other
    work of the machine.
    """
    pairs = zip(published["all_seconds"], ours["all_seconds"], strict=True)
    of_pairs = [seconds / own_seconds for seconds, own_seconds in pairs]
    return {
        "speedup": published["seconds"] / ours["seconds"],
        "speedup_range": [min(of_pairs), max(of_pairs)],
        "speedup_of_fastest": min(published["all_seconds"]) / min(ours["all_seconds"]),
        "memory_ratio": ours["peak_bytes"] / published["peak_bytes"],
    }


def summary(timings: list[Timing], comparison: Comparison) -> dict:
    """Medians of seconds, and means of calls."""
    seconds = statistics.median(timing.seconds for timing in timings)
    return {
        "seconds": seconds,
        "all_seconds": [timing.seconds for timing in timings],
        "tokens_per_second": comparison.batch_size * comparison.length / seconds,
        "energy_share": statistics.median(timing.energy_seconds / timing.seconds for timing in timings),
        "denoiser_calls_per_row": statistics.mean(timing.denoiser_calls for timing in timings),
        "energy_calls_per_row": statistics.mean(timing.energy_calls for timing in timings),
    }


def published_bytes(comparison: Comparison) -> int:
    """About what the published sampler needs: four float32 tensors of shape (k B, L, V)."""
    rows = comparison.num_candidates * comparison.batch_size
    return 4 * 4 * rows * comparison.length * comparison.vocab_size


def measure_scaling(settings: SpeedSettings, progress: Progress) -> dict:
    """Time of `generate()` along each size and the fitted exponents."""
    rows = []
    for axis, comparison in settings.scaling_comparisons():
        contest = Contest(random_model(comparison, settings), comparison, settings)
        contest.time(OURS, seed=0, steps=min(WARM_UP_STEPS, comparison.own_steps))
        progress.finish_one()

        timings = []
        for seed in range(1, settings.repeats + 1):
            timings.append(contest.time(OURS, seed))
            progress.finish_one()
        row = {"axis": axis, "value": getattr(comparison, AXES[axis])}
        rows.append(row | dataclasses.asdict(comparison) | summary(timings, comparison))
    return {"exponents": fit_exponents(rows), "measurements": rows}


def fit_exponents(rows: list[dict]) -> dict[str, float]:
    """Least squares of log seconds against the log of each size: seconds ~ size ** exponent."""
    exponents = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        of_axis = [(row["value"], row["seconds"]) for row in rows if row["axis"] == axis]
        if len(of_axis) > 1:
            sizes, seconds = np.log(np.array(of_axis, dtype=float)).T
            exponents[axis] = float(np.polyfit(sizes, seconds, 1)[0])
    return exponents


__all__ = ["QUICK", "SpeedSettings", "markdown", "run_benchmark"]
