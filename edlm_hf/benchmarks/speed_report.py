"""The page of `edlm benchmark speed` and its plots."""

from pathlib import Path

from edlm_hf.benchmarks.figures import legend_beside, new_figure, save_figure
from edlm_hf.benchmarks.speed_settings import OURS, PUBLISHED
from edlm_hf.benchmarks.tables import Column, table, text


def markdown(result: dict) -> str:
    """The page of a result."""
    facts = result["environment"]
    settings = result["settings"]
    compiled = ", compiled" if settings["compile"] else ""
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
    return lambda row: format(row[side][name] / unit, spec) if side in row else "-"


def of_both(name: str, spec: str) -> Column:
    """The column of a measurement of both sides."""
    published = of_side(PUBLISHED, name, spec)
    ours = of_side(OURS, name, spec)
    return lambda row: f"{published(row)} / {ours(row)}"


def times_faster(row: dict) -> str:
    if "speedup" not in row:
        return "-"
    low, high = row["speedup_range"]
    return f"{row['speedup']:.2f} ({low:.2f}-{high:.2f})"


def part_of_memory(row: dict) -> str:
    return f"{row['memory_ratio']:.3f}" if "memory_ratio" in row else "-"


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
    rows = []
    for axis, exponent in result["scaling"]["exponents"].items():
        measured = [row for row in result["scaling"]["measurements"] if row["axis"] == axis]
        row = {
            "axis": axis,
            "values": ", ".join(f"{row['value']:.4g}" for row in measured),
            "seconds": ", ".join(f"{row['seconds']:.4g}" for row in measured),
            "exponent": f"{exponent:.2f}",
        }
        rows.append(row)

    columns = {"size": text("axis"), "values": text("values"), "seconds": text("seconds")}
    return table(columns | {"exponent": text("exponent")}, rows)


def plot(result: dict, output: Path) -> list[str]:
    """Write time and peak memory against T, a picture for each V. Nothing without matplotlib."""
    written = []
    for vocab_size in result["settings"]["vocab_sizes"]:
        rows = [row for row in result["comparisons"] if row["vocab_size"] == vocab_size]
        figure = new_figure(11, 4.5)
        if figure is None:
            return []

        left, right = figure.subplots(1, 2)
        plot_sides(left, rows, "seconds", scale=1)
        left.set_ylabel("seconds")
        plot_sides(right, rows, "peak_bytes", scale=1e-6)
        right.set_ylabel("peak memory in MB")
        legend_beside(right)
        figure.suptitle(f"V = {vocab_size}, L = {result['settings']['length']}")
        written.append(save_figure(figure, output / f"speed_{vocab_size}.png"))
    return written


def plot_sides(axes, rows: list[dict], name: str, scale: float) -> None:
    """A colour for each mode and batch size, broken lines for published and solid ones for ours."""
    kinds = list(dict.fromkeys((row["mode"], row["batch_size"]) for row in rows))
    for i, (mode, batch_size) in enumerate(kinds):
        of_kind = [row for row in rows if (row["mode"], row["batch_size"]) == (mode, batch_size)]
        for side, style in ((PUBLISHED, "--"), (OURS, "-")):
            measured = [row for row in of_kind if side in row]
            x = [row["steps"] for row in measured]
            y = [row[side][name] * scale for row in measured]
            label = f"{mode}, B = {batch_size}, {side}"
            axes.plot(x, y, style, marker="o", color=f"C{i % 10}", label=label)
    axes.set(xlabel="steps T", xscale="log", yscale="log")


__all__ = ["markdown", "plot"]
