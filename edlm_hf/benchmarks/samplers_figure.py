"""The plot of `edlm benchmark samplers`: what a second buys, in bounds and in samples."""

from pathlib import Path

from edlm_hf.benchmarks.figures import light_frame, new_figure, plain_ticks, save_figure

LINE = {
    "marker": "o",
    "markersize": 4,
    "linewidth": 1.4,
    "elinewidth": 0.7,
    "capsize": 2,
}
# Height of a name at the right, in parts of the height of the axes
LINE_OF_TEXT = 0.045
TITLE = "What a second buys: numbers at the points are steps T, bars one standard error"


def plot(result: dict, output: Path) -> list[str]:
    """Write the plot and return its name, nothing without matplotlib or without samples."""
    figure = frontier_figure(result)
    if figure is None:
        return []
    return [save_figure(figure, output / "frontier.png")]


def frontier_figure(result: dict):
    """Bounds on the first set of texts, and judged samples, against seconds per sample."""
    # Rows of texts have no seconds
    samples = [row for row in result["samples"] if "seconds_per_sample" in row]
    figure = new_figure(13, 5.4)
    if figure is None or not samples:
        return None

    # Only samplers that made samples have a place on the axis of seconds
    seconds = {sampler_of(row): row["seconds_per_sample"] for row in samples}
    data = result["bounds"][0]["data"]
    bounds = [row for row in result["bounds"] if row["data"] == data]
    bounds = [row for row in bounds if sampler_of(row) in seconds]

    # Left the bounds, right the samples
    left, right = figure.subplots(1, 2)
    plot_rules(left, bounds, seconds, "bits_per_character")
    left.set_ylabel(f"bits per character of {data} (bound), less is better")
    plot_rules(right, samples, seconds, "judge_bits")
    right.set_ylabel("bits per character of samples under the AR judge")

    # Real text is the height to aim at: less than that is too likely to be good text
    texts = [row for row in result["samples"] if row["rule"] == f"text: {data}"]
    for row in texts:
        mark_height(right, row["judge_bits"]["value"], "real text")
    figure.suptitle(TITLE, fontsize="medium")
    return figure


def sampler_of(row: dict) -> tuple:
    """Rule and T, which bounds and samples of one sampler have in common."""
    return row["rule"], row["steps"]


def plot_rules(axes, rows: list[dict], seconds: dict[tuple, float], name: str) -> None:
    """A line for each rule against seconds per sample, with its name where it ends."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    ends = []
    for i, rule in enumerate(rules):
        # From the fastest to the slowest, so that the line ends at the right
        rows_of_rule = [row for row in rows if row["rule"] == rule]
        rows_of_rule.sort(key=lambda row: seconds[sampler_of(row)])
        x = [seconds[sampler_of(row)] for row in rows_of_rule]
        y = [row[name]["value"] for row in rows_of_rule]
        errors = [row[name]["standard_error"] for row in rows_of_rule]

        # matplotlib has ten colours in turn. The rule that all others are compared with is black
        colour = f"C{i % 10}"
        if rule == "ancestral":
            colour = "black"
        axes.errorbar(x, y, yerr=errors, color=colour, **LINE)

        # T at every point, a few points of the font away from it
        label_style = {
            "textcoords": "offset points",
            "fontsize": "x-small",
            "color": colour,
        }
        for row, left, height in zip(rows_of_rule, x, y, strict=True):
            if row["steps"] is not None:
                axes.annotate(str(row["steps"]), (left, height), (3, 4), **label_style)
        ends.append((y[-1], x[-1], without_parameter_names(rule), colour))

    # The limits of the axes must be final before the names take their places
    axes.set(xscale="log", xlabel="seconds per sample")
    plain_ticks(axes.xaxis)
    light_frame(axes)
    label_ends(axes, ends)


def label_ends(axes, ends: list[tuple]) -> None:
    """Write every name at the right, where its line ends but never over another name.

    Args:
        ends: (height, seconds, name, colour) of each line.
    """
    ends = sorted(ends)
    low, high = axes.get_ylim()
    gap = (high - low) * LINE_OF_TEXT

    # From below, each name at least a gap above the one before
    heights = []
    for height, *_ in ends:
        if heights:
            height = max(height, heights[-1] + gap)
        heights.append(height)

    # A faint line leads from the name to the end of its curve
    right = axes.get_xlim()[1]
    for (y, x, name, colour), height in zip(ends, heights, strict=True):
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5,
            "alpha": 0.5,
        }
        style = {
            "annotation_clip": False,
            "va": "center",
            "fontsize": "small",
            "color": colour,
        }
        axes.annotate(name, (x, y), (right * 1.1, height), arrowprops=line, **style)


def mark_height(axes, height: float, name: str) -> None:
    """A dotted line with its name at the right."""
    axes.axhline(height, color="0.4", linestyle=":", linewidth=1)

    # x in parts of the width of the axes, y in their data
    style = {
        "xycoords": axes.get_yaxis_transform(),
        "textcoords": "offset points",
        "ha": "right",
        "fontsize": "small",
        "color": "0.4",
    }
    axes.annotate(name, (0.99, height), (0, 3), **style)


def without_parameter_names(rule: str) -> str:
    """`spaced score=entropy distance=8` -> `spaced entropy 8`."""
    words = [word.split("=")[-1] for word in rule.split()]
    return " ".join(words)


__all__ = ["plot"]
