"""`edlm benchmark speed`: `generate()` against the published samplers on the same weights, in one process and one run.

The two sides of a comparison run alternately (published, ours, published, ours, ...) after one warm-up each, so that a
machine that gets slower or faster meanwhile hits both: read the ratios, not the seconds.

Peak memory is what tensors take above the start of a run, in a run of its own: on CUDA the allocator's own maximum; on
the CPU the running sum of all allocations and releases of torch's allocator, temporaries inside operators included, as
torch.profiler records them. Both sides are measured the same way, and with at most 128 steps: what is published takes
the same memory at every T, and ours less with more steps, which reveal less each.
"""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from edlm_hf.benchmarks.published import AutoregressiveEnergy, sample_published
from edlm_hf.benchmarks.report import DTYPES, environment, new_figure, save_figure, write_results
from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForCausalLM, MDLMForMaskedLM

MODES = ("mdlm", "ar", "first_hitting", "planned")
PUBLISHED, OURS = "published", "ours"

# T of the planner -> the largest measured T whose ancestral bound is not better (256 texts, results/samplers)
EQUAL_BOUND = {8: 32, 16: 64}
PLANNER = {"sampler": "spaced", "distance": 8, "score": "entropy"}
WARM_UP_STEPS, MEMORY_STEPS = 4, 128


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured: every combination of vocabulary, batch size, number of steps and mode.

    `mdlm` has no energy (k = 1). `ar` weighs `candidates` complete sequences by the autoregressive energy in the window
    [1 - w, 1]. `first_hitting` reveals one token per call, the distribution of T -> infinity. It is compared with
    published MDLM at the largest T. `planned` is the spaced planner, least entropy first, at T of `planned_steps`
    against published MDLM at the T whose bound is not better (`EQUAL_BOUND`).

    Raises:
        ValueError: a value is out of range.
    """

    modes: tuple[str, ...] = MODES
    vocab_sizes: tuple[int, ...] = (28, 50258)
    steps: tuple[int, ...] = (16, 64, 128, 256, 1024)
    planned_steps: tuple[int, ...] = tuple(EQUAL_BOUND)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    length: int = 256
    width: int = 256
    blocks: int = 8
    candidates: int = 8
    window: float = 1.0
    repeats: int = 5
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False
    scaling: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            values = value if isinstance(value, tuple) else (value,)
            if not values:
                raise ValueError(f"{name} is empty. Give at least one value, separated by commas.")
            if name != "seed" and any(isinstance(x, int) and not isinstance(x, bool) and x < 1 for x in values):
                raise ValueError(f"{name} is {value}, but it must be positive.")
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f"modes has {mode!r}, but there are only {', '.join(MODES)}.")
        for steps in self.planned_steps:
            if steps not in EQUAL_BOUND:
                raise ValueError(f"planned_steps has {steps}, but equal bounds are known for {known_bounds()} only.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but it must be one of {', '.join(DTYPES)}.")
        if min(self.vocab_sizes) < 3:
            raise ValueError(f"vocab_sizes has {min(self.vocab_sizes)}, but two tokens and the mask are needed.")
        if not 0 <= self.window <= 1:
            raise ValueError(f"window is {self.window}, but it must lie in [0, 1].")

    def points(self) -> Iterator["Point"]:
        for vocab_size, batch_size, mode in itertools.product(self.vocab_sizes, self.batch_sizes, self.modes):
            k = self.candidates if mode == "ar" else 1
            for steps, own_steps in self.pairs_of_steps(mode):
                yield Point(mode, vocab_size, self.length, steps, batch_size, k, own_steps)

    def pairs_of_steps(self, mode: str) -> list[tuple[int, int]]:
        """The numbers of steps of the published sampler and of ours that are compared with each other."""
        if mode == "planned":
            return [(EQUAL_BOUND[steps], steps) for steps in self.planned_steps]
        compared = (max(self.steps),) if mode == "first_hitting" else self.steps
        return [(steps, steps) for steps in compared]


def known_bounds() -> str:
    return " and ".join(map(str, EQUAL_BOUND))


QUICK = SpeedSettings(
    vocab_sizes=(28, 8192), steps=(16, 64), batch_sizes=(1,), length=64, width=128, blocks=4, candidates=4, repeats=3
)


@dataclass(frozen=True)
class Point:
    """One comparison: `steps` are those of the published sampler, `own_steps` those of ours."""

    mode: str
    vocab_size: int
    length: int
    steps: int
    batch_size: int
    num_candidates: int
    own_steps: int

    def steps_of(self, side: str) -> int:
        return self.own_steps if side == OURS else self.steps


# ------------------------------------------------------------------------------------------------------ the two sides


def random_model(point: Point, settings: SpeedSettings) -> EDLMForMaskedDiffusion:
    """Denoiser and autoregressive energy with normal noise on every parameter, so that no logits are constant.

    The energy's start token is an id of its own, behind the denoiser's vocabulary.
    """
    sizes = {
        "hidden_dim": settings.width,
        "n_blocks": settings.blocks,
        "n_heads": max(1, settings.width // 64),
        "model_length": point.length,
        "mask_token_id": point.vocab_size - 1,
    }
    start = point.vocab_size
    denoiser = MDLMForMaskedLM(MDLMConfig(vocab_size=point.vocab_size, dropout=0.0, **sizes))
    energy = MDLMForCausalLM(
        MDLMConfig(vocab_size=point.vocab_size + 1, causal=True, bos_token_id=start, dropout=0.0, **sizes)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for parameter in (*denoiser.parameters(), *energy.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model = EDLMForMaskedDiffusion.from_components(denoiser, energy, energy_type="ar")
    model = model.to(settings.device, DTYPES[settings.dtype]).eval()
    if settings.compile:
        model.denoiser.backbone.compile()
        model.energy_model.backbone.compile()
    return model


@dataclass
class Run:
    """One run: seconds, those inside the energy, and network calls per row."""

    seconds: float
    energy_seconds: float
    denoiser_calls: float
    energy_calls: float


class Stopwatch:
    """A function and the seconds spent in it; on CUDA by events, so that nothing waits for the device meanwhile."""

    def __init__(self, function: Callable, device: torch.device):
        self.function, self.device, self.spans = function, device, []

    def __call__(self, *args, **kwargs):
        began = self.now()
        result = self.function(*args, **kwargs)
        self.spans.append((began, self.now()))
        return result

    def now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Seconds since the last time it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            total = sum(began.elapsed_time(ended) / 1000 for began, ended in self.spans)
        else:
            total = sum(ended - began for began, ended in self.spans)
        self.spans.clear()
        return total


class Contest:
    """Both samplers at one point: call `run(side, seed)`."""

    def __init__(self, model: EDLMForMaskedDiffusion, point: Point, settings: SpeedSettings):
        self.model, self.point, self.settings = model, point, settings
        self.device = next(model.parameters()).device
        mask, start = model.config.mask_token_id, model.energy_model.config.bos_token_id
        self.ids = torch.full((point.batch_size, point.length), mask, device=self.device)
        model.__dict__.pop("own_energy", None)  # of an earlier contest
        published = AutoregressiveEnergy(model.energy_model, point.vocab_size, mask, start)
        self.energies = {
            PUBLISHED: Stopwatch(published, self.device),
            OURS: Stopwatch(model.own_energy("sequence"), self.device),
        }
        model.own_energy = lambda *_: self.energies[OURS]

    def run(self, side: str, seed: int, steps: int | None = None) -> Run:
        generator = torch.Generator(self.device).manual_seed(seed)
        sample = self.sample_published if side == PUBLISHED else self.sample_ours
        self.wait()
        began = time.perf_counter()
        calls = sample(generator, steps or self.point.steps_of(side))
        self.wait()
        return Run(time.perf_counter() - began, self.energies[side].seconds(), *calls)

    def sample_published(self, generator: torch.Generator, steps: int) -> tuple[float, float]:
        result = sample_published(
            self.model.denoiser,
            self.ids,
            self.model.config.mask_token_id,
            steps,
            energy=self.energies[PUBLISHED] if self.point.mode == "ar" else None,
            num_candidates=self.point.num_candidates,
            energy_window=self.settings.window,
            generator=generator,
        )
        return float(result.denoiser_calls), float(result.energy_calls)

    def sample_ours(self, generator: torch.Generator, steps: int) -> tuple[float, float]:
        sampler = PLANNER if self.point.mode == "planned" else {"sampler": "ancestral"}
        if self.point.mode == "first_hitting":
            sampler = {"sampler": "first_hitting"}
        result = self.model.generate(
            self.ids,
            max_denoising_steps=steps,
            **sampler,
            num_candidates=self.point.num_candidates,
            energy_window=self.settings.window,
            generator=generator,
            return_dict_in_generate=True,
        )
        assert not (result.sequences == self.model.config.mask_token_id).any()
        calls = result.num_denoiser_calls, result.num_energy_calls
        return tuple(float(x.double().mean()) for x in calls)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most that tensors took, above what they take at the start, while `function` runs (see the top)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes a line at every start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum([0, *changes], dtype=np.int64).max())


# --------------------------------------------------------------------------------------------------------- measuring


def compare(contest: Contest, tick: Callable[[], None] = lambda: None) -> dict:
    """Medians of both sides at one point and their ratios; a side that does not fit into memory is left out."""
    point, repeats = contest.point, contest.settings.repeats
    needed, free = published_bytes(point), free_bytes(contest.device)
    sides = (OURS,) if needed > free else (PUBLISHED, OURS)
    runs = {side: [] for side in sides}
    for side in sides:
        contest.run(side, seed=0, steps=min(WARM_UP_STEPS, point.steps_of(side)))
        tick()
    for repeat, side in itertools.product(range(1, repeats + 1), sides):
        runs[side].append(contest.run(side, seed=repeat))
        tick()
    result = dataclasses.asdict(point)
    for side in sides:
        steps = min(MEMORY_STEPS, point.steps_of(side))
        peak = peak_bytes(lambda side=side, steps=steps: contest.run(side, seed=1, steps=steps), contest.device)
        result[side] = summary(runs[side], point) | {"peak_bytes": peak}
        tick()
    if PUBLISHED not in sides:
        result["left_out"] = f"published needs about {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free"
        return result
    ratios = [a.seconds / b.seconds for a, b in zip(runs[PUBLISHED], runs[OURS], strict=True)]
    result["speedup"] = result[PUBLISHED]["seconds"] / result[OURS]["seconds"]
    result["speedup_range"] = [min(ratios), max(ratios)]
    fastest = {side: min(result[side]["all_seconds"]) for side in sides}
    result["speedup_of_fastest"] = fastest[PUBLISHED] / fastest[OURS]  # least touched by what else the machine does
    result["memory_ratio"] = result[OURS]["peak_bytes"] / result[PUBLISHED]["peak_bytes"]
    return result


def summary(runs: list[Run], point: Point) -> dict:
    seconds = statistics.median(run.seconds for run in runs)
    return {
        "seconds": seconds,
        "all_seconds": [run.seconds for run in runs],
        "tokens_per_second": point.batch_size * point.length / seconds,
        "energy_share": statistics.median(run.energy_seconds / run.seconds for run in runs),
        "denoiser_calls_per_row": statistics.mean(run.denoiser_calls for run in runs),
        "energy_calls_per_row": statistics.mean(run.energy_calls for run in runs),
    }


def published_bytes(point: Point) -> int:
    """About what the published sampler needs: four float32 tensors of shape (k B, L, V)."""
    return 16 * point.num_candidates * point.batch_size * point.length * point.vocab_size


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63  # unknown here: the system decides


def scaling_points(settings: SpeedSettings) -> Iterator[tuple[str, Point]]:
    """Each of L, V, k and T alone at 1/4, 1/2, 1 and 2 times (B: 1, 2 and 4 times) a point of what is measured."""
    mode = "ar" if "ar" in settings.modes else settings.modes[0]
    k = settings.candidates if mode == "ar" else 1
    middle = sorted(settings.steps)[len(settings.steps) // 2]
    base = Point(mode, max(settings.vocab_sizes), settings.length, middle, min(settings.batch_sizes), k, middle)
    axes = {"L": "length", "V": "vocab_size", "k": "num_candidates", "T": "steps", "B": "batch_size"}
    for axis, field in axes.items():
        at = getattr(base, field)
        factors = (1, 2, 4) if axis == "B" else (0.25, 0.5, 1, 2)
        values = sorted({max(3 if axis == "V" else 1, round(at * factor)) for factor in factors})
        if axis == "k":  # one candidate needs no energy: another algorithm
            values = [value for value in values if value > 1] if mode == "ar" else []
        for value in values:
            changed = {field: value, "own_steps": value} if axis == "T" else {field: value}
            yield axis, dataclasses.replace(base, **changed)


def fit_exponents(rows: list[dict]) -> dict[str, float]:
    """Least squares of log seconds against the log of each varied size: seconds ~ size ** exponent."""
    exponents = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        of_axis = [(row["value"], row["seconds"]) for row in rows if row["axis"] == axis]
        if len(of_axis) > 1:
            sizes, seconds = np.log(np.array(of_axis, dtype=float)).T
            exponents[axis] = float(np.polyfit(sizes, seconds, 1)[0])
    return exponents


def measure_scaling(settings: SpeedSettings, tick: Callable[[], None] = lambda: None) -> dict:
    """Time of `generate()` along each axis and the fitted exponents."""
    fields, rows = {"L": "length", "V": "vocab_size", "k": "num_candidates", "T": "steps", "B": "batch_size"}, []
    for axis, point in scaling_points(settings):
        contest = Contest(random_model(point, settings), point, settings)
        contest.run(OURS, seed=0, steps=min(WARM_UP_STEPS, point.own_steps))
        tick()
        runs = []
        for repeat in range(1, settings.repeats + 1):
            runs.append(contest.run(OURS, seed=repeat))
            tick()
        row = {"axis": axis, "value": getattr(point, fields[axis])} | dataclasses.asdict(point)
        rows.append(row | summary(runs, point))
    return {"exponents": fit_exponents(rows), "measurements": rows}


def run_benchmark(settings: SpeedSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything; results.json and results.md in `output` are renewed after every comparison.

    Args:
        advance: told (runs done, runs in all, what is running).
    """
    points = list(settings.points())
    scaling = list(scaling_points(settings)) if settings.scaling else []
    in_all = len(points) * 2 * (settings.repeats + 2) + len(scaling) * (settings.repeats + 1)
    done, label = 0, ""

    def tick():
        nonlocal done
        done += 1
        advance(done, in_all, label)

    output.mkdir(parents=True, exist_ok=True)
    seeds = {"weights": settings.seed, "runs": list(range(1, settings.repeats + 1))}
    result = {"environment": environment(torch.device(settings.device)) | {"seeds": seeds}}
    result |= {"settings": dataclasses.asdict(settings), "comparisons": []}
    models = {}
    for point in points:
        label = f"{point.mode} V={point.vocab_size} B={point.batch_size} T={point.steps}"
        advance(done, in_all, label)
        if point.vocab_size not in models:
            models = {point.vocab_size: random_model(point, settings)}
        result["comparisons"].append(compare(Contest(models[point.vocab_size], point, settings), tick))
        write_results(result, markdown(result), output)
    models.clear()
    if settings.scaling:
        label = "scaling"
        result["scaling"] = measure_scaling(settings, tick)
        write_results(result, markdown(result), output)
    result["plots"] = plot(result, output)
    write_results(result, markdown(result), output)
    return result


# --------------------------------------------------------------------------------------------------------- reporting


def markdown(result: dict) -> str:
    """The results as tables."""
    facts, settings = result["environment"], result["settings"]
    lines = [
        "# `generate()` against the published samplers",
        "",
        f"{facts['date']}, {facts['hardware']}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"{settings['dtype']}{', compiled' if settings['compile'] else ''}. {settings['blocks']} blocks of width "
        f"{settings['width']}, L = {settings['length']}, w = {settings['window']}, medians of {settings['repeats']} "
        "interleaved runs. Calls are per row; memory is the peak of live tensors above the start. Two values of T are "
        "those of published and of ours.",
        "",
        f"`{facts['command']}`",
        "",
        "| mode | V | B | T | k | published s | ours s | times faster (range) | published MB | ours MB | of the memory "
        "| denoiser calls | energy calls | energy's share | tokens/s |",
        "|" + "---|" * 15,
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in result["comparisons"]]
    for row in result["comparisons"]:
        if "left_out" in row:
            lines.append(f"\n{' '.join(cells(row)[:5])}: {row['left_out']}.")
    if "scaling" in result:
        lines += ["", "Time of ours ~ size ^ exponent, one size varied at a time:", ""]
        lines += ["| size | values | seconds | exponent |", "|---|---|---|---|"]
        for axis, exponent in result["scaling"]["exponents"].items():
            rows = [row for row in result["scaling"]["measurements"] if row["axis"] == axis]
            values, seconds = (", ".join(f"{row[name]:.4g}" for row in rows) for name in ("value", "seconds"))
            lines.append(f"| {axis} | {values} | {seconds} | {exponent:.2f} |")
    return "\n".join(lines) + "\n"


def cells(row: dict) -> list[str]:
    """One row of the table; a dash where published was left out."""
    ours, published = row[OURS], row.get(PUBLISHED)
    point = [str(row[name]) for name in ("mode", "vocab_size", "batch_size", "steps", "num_candidates")]
    if row["own_steps"] != row["steps"]:
        point[3] = f"{row['steps']} / {row['own_steps']}"

    def both(name: str, spec: str) -> str:
        return " / ".join("-" if side is None else format(side[name], spec) for side in (published, ours))

    low, high = row.get("speedup_range", (0, 0))
    return [
        *point,
        "-" if published is None else f"{published['seconds']:.3g}",
        f"{ours['seconds']:.3g}",
        "-" if published is None else f"{row['speedup']:.2f} ({low:.2f}-{high:.2f})",
        "-" if published is None else f"{published['peak_bytes'] / 1e6:.1f}",
        f"{ours['peak_bytes'] / 1e6:.1f}",
        "-" if published is None else f"{row['memory_ratio']:.3f}",
        both("denoiser_calls_per_row", ".1f"),
        both("energy_calls_per_row", ".1f"),
        both("energy_share", ".0%"),
        both("tokens_per_second", ".0f"),
    ]


def plot(result: dict, output: Path) -> list[str]:
    """Time and peak memory against T for both sides, one picture per vocabulary; nothing without matplotlib."""
    written = []
    for vocab_size in result["settings"]["vocab_sizes"]:
        rows = [row for row in result["comparisons"] if row["vocab_size"] == vocab_size]
        kinds = list(dict.fromkeys((row["mode"], row["batch_size"]) for row in rows))
        figure = new_figure(11, 4.5)
        if figure is None:
            return []
        axes = figure.subplots(1, 2)
        for axis, name, unit in ((axes[0], "seconds", "seconds"), (axes[1], "peak_bytes", "peak memory in MB")):
            for number, (mode, batch_size) in enumerate(kinds):
                for side, style in ((PUBLISHED, "--"), (OURS, "-")):
                    of_kind = [r for r in rows if (r["mode"], r["batch_size"]) == (mode, batch_size) and side in r]
                    scale = 1e-6 if name == "peak_bytes" else 1
                    axis.plot(
                        [row["steps"] for row in of_kind],
                        [row[side][name] * scale for row in of_kind],
                        style,
                        marker="o",
                        color=f"C{number % 10}",
                        label=f"{mode}, B = {batch_size}, {side}",
                    )
            axis.set(xlabel="steps T", ylabel=unit, xscale="log", yscale="log")
        axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle(f"V = {vocab_size}, L = {result['settings']['length']}")
        written.append(save_figure(figure, output / f"speed_{vocab_size}.png"))
    return written


__all__ = ["QUICK", "Point", "SpeedSettings", "markdown", "random_model", "run_benchmark"]
