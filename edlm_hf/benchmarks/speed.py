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

# The most steps of a warm-up, and of the run that measures memory
WARM_UP_STEPS, MEMORY_STEPS = 4, 128

# Tensors of shape (k B, L, V) that the published sampler holds at once, about
PUBLISHED_TENSORS = 4
BYTES_OF_FLOAT32 = 4


def run_benchmark(settings: SpeedSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything, and renew results.json and results.md after every comparison.

    Args:
        advance: called with (runs finished, runs in all, what runs now).
    """
    output.mkdir(parents=True, exist_ok=True)
    comparisons = list(settings.comparisons())
    progress = Progress(advance, number_of_runs(settings))

    # Both sides draw from the same seeds. The seed 0 is the warm-up
    seeds = {
        "weights": settings.seed,
        "runs": list(range(1, settings.repeats + 1)),
    }
    result = {
        "environment": {**environment(torch.device(settings.device)), "seeds": seeds},
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
        row = compare(contest, progress)
        result["comparisons"].append(row)
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
    """Mode, V, B and T of the published side, for the progress bar."""
    sizes = f"V={comparison.vocab_size} B={comparison.batch_size} T={comparison.steps}"
    return f"{comparison.mode} {sizes}"


def number_of_runs(settings: SpeedSettings) -> int:
    """A warm-up, the timed runs and one for the memory of each side. Scaling has no memory."""
    num_comparisons = len(list(settings.comparisons()))
    runs = num_comparisons * 2 * (settings.repeats + 2)
    if settings.scaling:
        num_sizes = len(list(settings.scaling_comparisons()))
        runs += num_sizes * (settings.repeats + 1)
    return runs


def compare(contest: Contest, progress: Progress) -> dict:
    """Medians of both sides and their ratios. A side that does not fit into memory is left out."""
    comparison = contest.comparison
    needed = published_bytes(comparison)
    free = free_bytes(contest.device)
    sides = (OURS,) if needed > free else (PUBLISHED, OURS)

    # 1. Warm-ups: kernels are loaded, and with `compile` the networks are compiled
    timings = {side: [] for side in sides}
    for side in sides:
        steps = min(WARM_UP_STEPS, comparison.steps_of(side))
        contest.time(side, seed=0, steps=steps)
        progress.finish_one()

    # 2. Timed runs in turn
    for seed in range(1, contest.settings.repeats + 1):
        for side in sides:
            timings[side].append(contest.time(side, seed))
            progress.finish_one()

    # 3. Memory, in a run that is not timed, because the profiler makes it slower
    result = dataclasses.asdict(comparison)
    for side in sides:
        result[side] = summary(timings[side], comparison)
        result[side]["peak_bytes"] = peak_bytes_of(contest, side)
        progress.finish_one()

    # 4. Ratios
    if PUBLISHED not in sides:
        result["left_out"] = f"published needs about {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free"
        return result
    result.update(ratios(result[PUBLISHED], result[OURS]))
    return result


def peak_bytes_of(contest: Contest, side: str) -> int:
    """Peak memory of one run of a side."""
    steps = min(MEMORY_STEPS, contest.comparison.steps_of(side))

    def one_run() -> Timing:
        return contest.time(side, seed=1, steps=steps)

    return peak_bytes(one_run, contest.device)


def ratios(published: dict, ours: dict) -> dict:
    """How many times faster ours is, and its part of the memory.

    The range is over pairs of runs. The ratio of the fastest runs is the least touched by other
    work of the machine.
    """
    # Two runs of a pair follow each other, so that both had the same machine
    pairs = zip(published["all_seconds"], ours["all_seconds"], strict=True)
    of_pairs = [seconds / own_seconds for seconds, own_seconds in pairs]

    fastest = min(published["all_seconds"])
    own_fastest = min(ours["all_seconds"])
    return {
        "speedup": published["seconds"] / ours["seconds"],
        "speedup_range": [min(of_pairs), max(of_pairs)],
        "speedup_of_fastest": fastest / own_fastest,
        "memory_ratio": ours["peak_bytes"] / published["peak_bytes"],
    }


def summary(timings: list[Timing], comparison: Comparison) -> dict:
    """Medians of seconds, and means of calls."""
    # Medians, because another process can slow a run down but nothing makes one faster
    all_seconds = [timing.seconds for timing in timings]
    seconds = statistics.median(all_seconds)
    energy_shares = [timing.energy_seconds / timing.seconds for timing in timings]

    num_tokens = comparison.batch_size * comparison.length
    return {
        "seconds": seconds,
        "all_seconds": all_seconds,
        "tokens_per_second": num_tokens / seconds,
        "energy_share": statistics.median(energy_shares),
        "denoiser_calls_per_row": statistics.mean(timing.denoiser_calls for timing in timings),
        "energy_calls_per_row": statistics.mean(timing.energy_calls for timing in timings),
    }


def published_bytes(comparison: Comparison) -> int:
    """About what the published sampler needs: four float32 tensors of shape (k B, L, V)."""
    rows = comparison.num_candidates * comparison.batch_size
    numbers = rows * comparison.length * comparison.vocab_size
    return PUBLISHED_TENSORS * BYTES_OF_FLOAT32 * numbers


def measure_scaling(settings: SpeedSettings, progress: Progress) -> dict:
    """Time of `generate()` along each size and the fitted exponents."""
    rows = []
    for axis, comparison in settings.scaling_comparisons():
        # 1. Networks of this size, and a warm-up
        contest = Contest(random_model(comparison, settings), comparison, settings)
        warm_up_steps = min(WARM_UP_STEPS, comparison.own_steps)
        contest.time(OURS, seed=0, steps=warm_up_steps)
        progress.finish_one()

        # 2. Timed runs
        timings = []
        for seed in range(1, settings.repeats + 1):
            timings.append(contest.time(OURS, seed))
            progress.finish_one()

        # 3. A row with the size that is varied, all sizes, and the medians
        row = {
            "axis": axis,
            "value": getattr(comparison, AXES[axis]),
            **dataclasses.asdict(comparison),
            **summary(timings, comparison),
        }
        rows.append(row)
    return {"exponents": fit_exponents(rows), "measurements": rows}


def fit_exponents(rows: list[dict]) -> dict[str, float]:
    """Least squares of log seconds against the log of each size: seconds ~ size ** exponent."""
    exponents = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        # A line needs two sizes. The axis k has none where no energy is measured
        of_axis = [(row["value"], row["seconds"]) for row in rows if row["axis"] == axis]
        if len(of_axis) < 2:
            continue

        # log seconds = exponent * log size + constant
        logs = np.log(np.array(of_axis, dtype=float))
        sizes, seconds = logs.T
        slope, _ = np.polyfit(sizes, seconds, 1)
        exponents[axis] = float(slope)
    return exponents


__all__ = ["QUICK", "SpeedSettings", "markdown", "run_benchmark"]
