"""The page of `edlm benchmark speed` and its plots."""

from pathlib import Path

from edlm_hf.benchmarks.figures import light_frame, new_figure, plain_ticks, save_figure
from edlm_hf.benchmarks.speed_settings import OURS, PUBLISHED
from edlm_hf.benchmarks.tables import Column, table, text


def markdown(result: dict) -> str:
    """The page of a result."""
    facts = result["environment"]
    settings = result["settings"]
    compiled = ", compiled" if settings["compile"] else ""

    # Where and how it was measured, and a line for each comparison
    lines = [
        "# `generate()` against the published samplers",
        "",
        f"{facts['date']}, {facts['hardware']}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"{settings['dtype']}{compiled}. {settings['blocks']} blocks of width "
        f"{settings['width']}, L = {settings['length']}, w = {settings['window']}, medians of {settings['repeats']} "
        "interleaved runs. Calls are per row; memory is the peak of live tensors above the start. Two values of T are "
        "those of published and of ours.",
        "",
        f"`{facts['command']}`",
        "",
        table(COLUMNS, result["comparisons"]),
    ]

    # Why some of the dashes are there
    for row in result["comparisons"]:
        if "left_out" in row:
            sizes = " ".join(column(row) for column in SIZES.values())
            lines.append(f"\n{sizes}: {row['left_out']}.")

    if "scaling" in result:
        lines += ["", "Time of ours ~ size ^ exponent, one size varied at a time:", "", scaling_table(result)]
    return "\n".join(lines) + "\n"


def steps(row: dict) -> str:
    """T, of both sides where they differ."""
    if row["own_steps"] != row["steps"]:
        return f"{row['steps']} / {row['own_steps']}"
    return str(row["steps"])


def of_side(side: str, name: str, spec: str, unit: float = 1) -> Column:
    """The column of a measurement of one side, a dash where the side was left out."""

    def column(row: dict) -> str:
        if side not in row:
            return "-"
        value = row[side][name]
        return format(value / unit, spec)

    return column


def of_both(name: str, spec: str) -> Column:
    """The column of a measurement of both sides."""
    published = of_side(PUBLISHED, name, spec)
    ours = of_side(OURS, name, spec)
    return lambda row: f"{published(row)} / {ours(row)}"


def times_faster(row: dict) -> str:
    """The cell of the ratio of medians, with the range over pairs of runs."""
    if "speedup" not in row:
        return "-"
    low, high = row["speedup_range"]
    return f"{row['speedup']:.2f} ({low:.2f}-{high:.2f})"


def part_of_memory(row: dict) -> str:
    """The cell of the peak memory of ours over the published one, below 1 where ours needs less."""
    if "memory_ratio" not in row:
        return "-"
    return f"{row['memory_ratio']:.3f}"


SIZES = {
    "mode": text("mode"),
    "V": text("vocab_size"),
    "B": text("batch_size"),
    "T": steps,
    "k": text("num_candidates"),
}
COLUMNS = SIZES | {
    "published s": of_side(PUBLISHED, "seconds", ".3g"),
    "ours s": of_side(OURS, "seconds", ".3g"),
    "times faster (range)": times_faster,
    "published MB": of_side(PUBLISHED, "peak_bytes", ".1f", unit=1e6),
    "ours MB": of_side(OURS, "peak_bytes", ".1f", unit=1e6),
    "of the memory": part_of_memory,
    "denoiser calls": of_both("denoiser_calls_per_row", ".1f"),
    "energy calls": of_both("energy_calls_per_row", ".1f"),
    "energy's share": of_both("energy_share", ".0%"),
    "tokens/s": of_both("tokens_per_second", ".0f"),
}


def scaling_table(result: dict) -> str:
    """A row for each size that was varied: its values, the seconds, and the fitted exponent."""
    scaling = result["scaling"]
    rows = []
    for axis, exponent in scaling["exponents"].items():
        measured = [row for row in scaling["measurements"] if row["axis"] == axis]
        values = [f"{row['value']:.4g}" for row in measured]
        seconds = [f"{row['seconds']:.4g}" for row in measured]
        row = {
            "axis": axis,
            "values": ", ".join(values),
            "seconds": ", ".join(seconds),
            "exponent": f"{exponent:.2f}",
        }
        rows.append(row)

    columns = {
        "size": text("axis"),
        "values": text("values"),
        "seconds": text("seconds"),
        "exponent": text("exponent"),
    }
    return table(columns, rows)


def plot(result: dict, output: Path) -> list[str]:
    """Write the ratios of time and of memory, a picture for each V. Nothing without matplotlib."""
    written = []
    for vocab_size in result["settings"]["vocab_sizes"]:
        # Only comparisons of both sides have a ratio
        rows = [row for row in result["comparisons"] if row["vocab_size"] == vocab_size]
        rows = [row for row in rows if "speedup" in row]

        # In inches: titles and axes, and a line for each comparison
        figure = new_figure(11, 1.7 + 0.35 * len(rows))
        if figure is None:
            return []
        if not rows:
            continue

        left, right = figure.subplots(1, 2, sharey=True)
        plot_speedups(left, rows)
        plot_memory(right, rows)
        figure.suptitle(f"Ours against published: V = {vocab_size}, L = {result['settings']['length']}")
        written.append(save_figure(figure, output / f"speed_{vocab_size}.png"))
    return written


def plot_speedups(axes, rows: list[dict]) -> None:
    """A point for each comparison, and the range over its runs."""
    for height, row in enumerate(rows):
        # The ratio of medians can lie outside the range of ratios, and no bar has a negative length
        low, high = row["speedup_range"]
        middle = row["speedup"]
        below = max(middle - low, 0)
        above = max(high - middle, 0)

        # (2, 1), as matplotlib wants bars of unequal length
        spread = [[below], [above]]
        axes.errorbar(
            middle,
            height,
            xerr=spread,
            fmt="o",
            color="C0",
            capsize=3,
        )

    # The first comparison is at the top, as in the table
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.invert_yaxis()
    finish_ratios(axes, "times faster: ratio of medians, and the range over runs")


def plot_memory(axes, rows: list[dict]) -> None:
    """A point for each comparison, without a range: peak memory is measured once."""
    memory_ratios = [row["memory_ratio"] for row in rows]
    axes.plot(memory_ratios, range(len(rows)), "o", color="C1")

    # The names of the comparisons are at the left of the other axes
    axes.tick_params(labelleft=False)
    finish_ratios(axes, "part of the published peak memory")


def finish_ratios(axes, label: str) -> None:
    """A logarithmic axis that has room for 1, where a line says that nothing differs."""
    axes.axvline(1, color="0.4", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel=label)

    # At least from 0.7 to 1.5, or differences of a few percent would look large
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.7), max(high, 1.5))
    axes.margins(y=0.2)
    plain_ticks(axes.xaxis)
    light_frame(axes)


def name_of(row: dict) -> str:
    """Mode, B and T of a comparison."""
    return f"{row['mode']}, B = {row['batch_size']}, T = {steps(row)}"


__all__ = ["markdown", "plot"]
