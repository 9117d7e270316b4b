"""The four plots of `edlm benchmark quality`."""

import itertools
from pathlib import Path

from edlm_hf.benchmarks.figures import legend_beside, light_frame, new_figure, plain_ticks, save_figure

POINTS_OF_T = "numbers: steps T; bars: one standard error"
GREY = {"fontsize": "small", "color": "0.4"}
ERROR_BARS = {"markersize": 4, "capsize": 2, "linewidth": 1.2}


def plot(result: dict, output: Path) -> list[str]:
    """Write the plots and return their names, none without matplotlib."""
    figures = {
        "quality_entropy.png": entropy_figure(result),
        "quality_cost.png": cost_figure(result),
        "effective_sample_size.png": sample_size_figure(result),
        "bound.png": bound_figure(result),
    }
    return [save_figure(figure, output / name) for name, figure in figures.items() if figure is not None]


def colours(result: dict) -> dict[str, str]:
    """A colour for every arm, the same in all plots."""
    arms = dict.fromkeys(row["samples"] for row in result["samples"] if "profile" in row)
    return {arm: f"C{i}" for i, arm in enumerate(arms)}


def rows_of_arm(result: dict, arm: str) -> list[dict]:
    """The samples of an arm along T."""
    rows = [row for row in result["samples"] if row["samples"] == arm]
    return sorted(rows, key=lambda row: row["steps"] or 0)


def rows_of_data(result: dict) -> list[dict]:
    """The texts themselves, which have no profile of an energy."""
    return [row for row in result["samples"] if "profile" not in row]


def values_of(rows: list[dict], name: str) -> list[float]:
    return [row[name]["value"] for row in rows]


def errors_of(rows: list[dict], name: str) -> list[float]:
    """Standard errors, 0 where they are unknown."""
    return [row[name]["standard_error"] or 0.0 for row in rows]


def plot_perplexity(axes, rows: list[dict], x: list[float], label: str, colour: str, xerr=None) -> None:
    """Gen-PPL of an arm along T with one standard error. T is written at the points."""
    perplexities = values_of(rows, "generative_perplexity")
    spread = errors_of(rows, "generative_perplexity")
    marker = "D" if rows[0]["steps"] is None else "o"
    style = ERROR_BARS | {"marker": marker, "elinewidth": 0.8, "color": colour, "label": label}
    axes.errorbar(x, perplexities, yerr=spread, xerr=xerr, **style)

    label_style = {"textcoords": "offset points", "fontsize": "x-small", "color": colour}
    for row, left, height in zip(rows, x, perplexities, strict=True):
        if row["steps"] is not None:
            axes.annotate(row["steps"], (left, height), (4, 4), **label_style)


def entropy_figure(result: dict):
    """Gen-PPL against unigram entropy. Good samples are where the data are, not below."""
    figure = new_figure(6.5, 4.5)
    if figure is None:
        return None

    axes = figure.subplots()
    for arm, colour in colours(result).items():
        rows = rows_of_arm(result, arm)
        entropies = values_of(rows, "unigram_entropy")
        plot_perplexity(axes, rows, entropies, arm, colour, xerr=errors_of(rows, "unigram_entropy"))

    for row, marker in zip(rows_of_data(result), itertools.cycle("*PXs")):
        axes.errorbar(
            values_of([row], "unigram_entropy"),
            values_of([row], "generative_perplexity"),
            xerr=errors_of([row], "unigram_entropy"),
            yerr=errors_of([row], "generative_perplexity"),
            fmt=marker,
            color="black",
            markersize=7,
            elinewidth=0.8,
            label=row["samples"],
        )

    axes.set(xlabel="unigram entropy of a sample (bits)", ylabel="generative perplexity", yscale="log")
    plain_ticks(axes.yaxis)
    light_frame(axes)
    axes.set_title(POINTS_OF_T, **GREY)
    axes.legend(fontsize="small", frameon=False)
    return figure


def cost_figure(result: dict):
    """Gen-PPL against the two measures of work."""
    figure = new_figure(11, 4.5)
    if figure is None:
        return None

    panels = figure.subplots(1, 2, sharey=True)
    panel_of_work(panels[0], result, "seconds_per_sample", "seconds per sample")
    panel_of_work(panels[1], result, "gigaflops_per_sample", "GFLOP per sample")
    panels[0].set_ylabel("generative perplexity")
    legend_beside(panels[1])
    figure.suptitle(POINTS_OF_T, **GREY)
    return figure


def panel_of_work(axes, result: dict, name: str, label: str) -> None:
    """Gen-PPL against one measure of work. The texts themselves are horizontal lines."""
    for arm, colour in colours(result).items():
        rows = rows_of_arm(result, arm)
        plot_perplexity(axes, rows, [row[name] for row in rows], arm, colour)

    for row, style in zip(rows_of_data(result), itertools.cycle((":", "--", "-."))):
        height = row["generative_perplexity"]["value"]
        axes.axhline(height, color="black", linestyle=style, linewidth=1, label=row["samples"])

    axes.set(xlabel=label, xscale="log", yscale="log")
    plain_ticks(axes.yaxis)
    plain_ticks(axes.xaxis)
    light_frame(axes)


def sample_size_figure(result: dict):
    """Effective sample size against t, a panel for each energy. None where there is no energy."""
    arms = [arm for arm in colours(result) if any(row["profile"] for row in rows_of_arm(result, arm))]
    figure = new_figure(0.8 + 3.6 * max(1, len(arms)), 3.8)
    if figure is None or not arms:
        return None

    k = result["settings"]["num_candidates"]
    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        panel_of_sample_sizes(axes, [row for row in rows_of_arm(result, arm) if row["profile"]])
        axes.set(title=arm, xlabel="t (1: all masked)", xlim=(1.02, -0.02))
        axes.set_ylim(0.9, k + 0.1)
        light_frame(axes)

    panels[0].set_ylabel(f"effective sample size of k = {k}")
    legend_beside(panels[-1], title="steps T")
    return figure


def panel_of_sample_sizes(axes, rows: list[dict]) -> None:
    """A line for each T with a band of one standard error, coloured from few steps to many."""
    from matplotlib import colormaps

    for i, row in enumerate(rows):
        profile = row["profile"]
        times = [step["t"] for step in profile]
        sizes = [step["effective_sample_size"] for step in profile]
        errors = [step["standard_error"] or 0.0 for step in profile]

        colour = colormaps["viridis"](i / max(1, len(rows) - 1) * 0.9)
        marker = "o" if len(times) < 40 else ""
        axes.plot(times, sizes, color=colour, marker=marker, markersize=3, label=row["steps"])

        low = [size - error for size, error in zip(sizes, errors, strict=True)]
        high = [size + error for size, error in zip(sizes, errors, strict=True)]
        axes.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)


def bound_figure(result: dict):
    """Bounds against T with the most inner copies, and below them what they differ from MDLM by, text by text.

    A panel of each for each set of texts.
    """
    names = list(dict.fromkeys(row["data"] for row in result["bounds"]))
    figure = new_figure(2 + 4.2 * max(1, len(names)), 6)
    if figure is None or not names:
        return None

    panels = figure.subplots(2, len(names), sharex=True, squeeze=False, height_ratios=(3, 2))
    for name, (upper, lower) in zip(names, panels.T, strict=True):
        panel_of_bounds(upper, result, name)
        panel_of_differences(lower, result, name)
        upper.set_title(name)
        lower.set_xlabel("steps T")
        lower.set_xscale("log", base=2)
        lower.set_xticks(sorted(result["settings"]["steps"]))
        lower.xaxis.set_major_formatter("{x:g}")
        lower.minorticks_off()
        for axes in (upper, lower):
            light_frame(axes)

    panels[0, 0].set_ylabel("bound (bits per character)")
    panels[1, 0].set_ylabel("less MDLM (nats per token)")
    legend_beside(panels[0, -1])
    figure.suptitle("the arms share texts and noise; bars: one standard error of the paired difference", **GREY)
    return figure


def bounds_along_steps(result: dict, name: str, arm: str) -> list[dict]:
    """The bounds of an arm on a set of texts for each T, with the most inner copies."""
    most = max(result["settings"]["inner_copies"])
    rows = [row for row in result["bounds"] if (row["data"], row["arm"]) == (name, arm)]
    return [row for row in rows if row["steps"] and row["inner_copies"] in (None, most)]


def panel_of_bounds(axes, result: dict, name: str) -> None:
    """A line for each arm along T, and horizontal lines where T plays no part."""
    for arm, colour in colours(result).items():
        for row in result["bounds"]:
            if (row["data"], row["arm"], row["steps"]) == (name, arm, None):
                label = "AR (exact)" if arm == "AR" else f"{arm}, T = ∞"
                height = row["bits_per_character"]["value"]
                axes.axhline(height, color=colour, linestyle="--", linewidth=1, label=label)

        rows = bounds_along_steps(result, name, arm)
        if rows:
            copies = rows[0]["inner_copies"]
            label = arm if copies is None else f"{arm}, m = {copies}"
            heights = [row["bits_per_character"]["value"] or 0.0 for row in rows]
            axes.plot([row["steps"] for row in rows], heights, "o-", color=colour, label=label, markersize=4)


def panel_of_differences(axes, result: dict, name: str) -> None:
    """What the bound of each energy differs from that of MDLM by at the same T. Below zero the energy is better."""
    axes.axhline(0, color="0.4", linewidth=1)
    for i, (arm, colour) in enumerate(colours(result).items()):
        rows = [row for row in bounds_along_steps(result, name, arm) if row["minus_mdlm"] is not None]
        if rows:
            # Arms stand a little apart, so that their bars do not hide each other
            x = [row["steps"] * 1.03**i for row in rows]
            differences = values_of(rows, "minus_mdlm")
            axes.errorbar(x, differences, yerr=errors_of(rows, "minus_mdlm"), fmt="o", color=colour, **ERROR_BARS)


__all__ = ["plot"]
