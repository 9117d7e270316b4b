"""The results of `edlm benchmark samplers` as Markdown tables and as a plot. They hold numbers only."""

from pathlib import Path

from edlm_hf.benchmarks.quality_report import number, plain_ticks, steps_of, table, value
from edlm_hf.benchmarks.report import new_figure, save_figure

ERROR = "standard_error"


def markdown(result: dict) -> str:
    """Two tables: bounds, and samples with their cost."""
    facts, settings = result["environment"], result["settings"]
    places = sorted({row["hardware"] for row in result["bounds"]})
    lines = [
        "# Samplers of one model without an energy",
        "",
        f"{facts['date']}, torch {facts['torch']}, transformers {facts['transformers']}, {'; '.join(places)}. "
        f"Model {settings['model']}, L = {result['length']}, {settings['dtype']}, seed {settings['seed']}, batches of "
        f"{settings['batch_size']}.",
        "",
        f"`{facts['command']}`",
        "",
        f"Bounds of {settings['num_texts']} texts of each set at most, in bits per character (± over texts). For rules "
        "whose reveal set follows from what is visible they are exact. Differences are paired text by text: ± is the "
        "standard error of the difference over texts, noise included. ∞ is one token per call in random order. "
        "'Worth' is the smallest measured T at which ancestral sampling reaches the bound.",
        "",
        table(BOUND_COLUMNS, result["bounds"]),
    ]
    if result["samples"]:
        lines += [
            "",
            f"Samples, ± one standard error. Judge: {settings['autoregressive']}. Bits under a judge mean nothing "
            "without the entropy beside them. Calls and seconds are per sample, seconds the median over batches.",
            "",
            table(SAMPLE_COLUMNS, result["samples"]),
        ]
    return "\n".join(lines) + "\n"


def signed(found: dict | None) -> str:
    """A difference with its sign and three digits."""
    if found is None:
        return "-"
    return f"{found['value']:+.3f} ± {found[ERROR]:.3f}"


def minus(row: dict, steps: int | None) -> dict | None:
    """The difference of a bound to ancestral sampling with T = `steps`, None where it was not measured."""
    matches = [pair["difference"] for pair in row["minus_ancestral"] if pair["steps"] == steps]
    return matches[0] if matches else None


def minus_same(row: dict) -> str:
    return "-" if row["steps"] is None else signed(minus(row, row["steps"]))


def worth(row: dict) -> str:
    """The smallest T of ancestral sampling whose bound is not above that of a row; > the largest if there is none."""
    if row["rule"] in ("ancestral", "first_hitting"):
        return "-"
    pairs = [pair for pair in row["minus_ancestral"] if pair["steps"] is not None]
    pairs = sorted(pairs, key=lambda pair: pair["steps"])
    reaching = [pair["steps"] for pair in pairs if pair["difference"]["value"] >= 0]
    if reaching:
        return str(reaching[0])
    limit = minus(row, None)
    if limit is not None and limit["value"] >= 0:
        return "∞"
    return "more than ∞" if limit is not None else f"more than {pairs[-1]['steps']}" if pairs else "-"


def steps_column(row: dict) -> str:
    return "∞" if row["rule"] == "first_hitting" else steps_of(row)


BOUND_COLUMNS = {
    "data": lambda row: row["data"],
    "sampler": lambda row: row["rule"],
    "T": steps_column,
    "n": lambda row: str(row["bits_per_character"]["num_samples"]),
    "bits/char": lambda row: f"{row['bits_per_character']['value']:.3f} ± {row['bits_per_character'][ERROR]:.3f}",
    "less ancestral, same T": minus_same,
    "less ancestral, ∞": lambda row: signed(minus(row, None)),
    "worth": worth,
}
SAMPLE_COLUMNS = {
    "sampler": lambda row: row["rule"],
    "T": steps_column,
    "n": lambda row: str(row["num_samples"]),
    "bits/char of the judge": value("judge_bits"),
    "known words": value("known_words"),
    "entropy (bits)": value("unigram_entropy"),
    "calls": value("calls"),
    "seconds": number("seconds_per_sample"),
}


def plot(result: dict, output: Path) -> list[str]:
    """The frontier of quality and time; none without matplotlib or without samples."""
    figure = frontier_figure(result)
    return [] if figure is None else [save_figure(figure, output / "frontier.png")]


def frontier_figure(result: dict):
    """Bounds and judged samples against seconds per sample, a line per rule with its name at the line's end."""
    samples = [row for row in result["samples"] if "seconds_per_sample" in row]
    figure = new_figure(13, 5.4)
    if figure is None or not samples:
        return None
    seconds = {(row["rule"], row["steps"]): row["seconds_per_sample"] for row in samples}
    first = result["bounds"][0]["data"]
    bounds = [row for row in result["bounds"] if row["data"] == first and (row["rule"], row["steps"]) in seconds]

    panels = figure.subplots(1, 2)
    draw_panel(
        panels[0], bounds, seconds, "bits_per_character", f"bits per character of {first} (bound), less is better"
    )
    draw_panel(panels[1], samples, seconds, "judge_bits", "bits per character of samples under the AR judge")
    for row in result["samples"]:
        if "seconds_per_sample" not in row and row["rule"] == f"text: {first}":
            panels[1].axhline(row["judge_bits"]["value"], color="0.4", linestyle=":", linewidth=1)
            at = (0.99, row["judge_bits"]["value"])
            style = {"xycoords": panels[1].get_yaxis_transform(), "fontsize": "small", "color": "0.4"}
            panels[1].annotate("real text", at, (0, 3), textcoords="offset points", ha="right", **style)
    figure.suptitle("What a second buys: numbers at the points are steps T, bars one standard error", fontsize="medium")
    return figure


def draw_panel(axes, rows: list[dict], seconds: dict, name: str, label: str) -> None:
    """One line per rule, labelled where it ends."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    ends = []
    for number_of_rule, rule in enumerate(rules):
        points = [row for row in rows if row["rule"] == rule]
        points = sorted(points, key=lambda row: seconds[rule, row["steps"]])
        x = [seconds[rule, row["steps"]] for row in points]
        y = [row[name]["value"] for row in points]
        spread = [row[name][ERROR] for row in points]

        colour = "black" if rule == "ancestral" else f"C{number_of_rule % 10}"
        style = {"marker": "o", "markersize": 4, "linewidth": 1.4, "elinewidth": 0.7, "capsize": 2}
        axes.errorbar(x, y, yerr=spread, color=colour, **style)
        for row, left, height in zip(points, x, y, strict=True):
            if row["steps"] is not None:
                style = {"textcoords": "offset points", "fontsize": "x-small", "color": colour}
                axes.annotate(str(row["steps"]), (left, height), (3, 4), **style)
        ends.append((y[-1], x[-1], short(rule), colour))

    axes.set(xscale="log", xlabel="seconds per sample", ylabel=label)
    plain_ticks(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    label_ends(axes, ends)


def label_ends(axes, ends: list[tuple]) -> None:
    """Write every name at the right of the panel, at the height of its line's end but never over another name."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.045
    heights = [height for height, *_ in sorted(ends)]
    for number_of_name in range(1, len(heights)):
        heights[number_of_name] = max(heights[number_of_name], heights[number_of_name - 1] + gap)

    right = axes.get_xlim()[1]
    for (y, x, name, colour), height in zip(sorted(ends), heights, strict=True):
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5}
        place = {"xytext": (right * 1.1, height), "annotation_clip": False, "va": "center", "fontsize": "small"}
        axes.annotate(name, (x, y), color=colour, arrowprops=arrow, **place)


def short(rule: str) -> str:
    """The rule without the names of its parameters: `spaced entropy 8`."""
    return " ".join(word.split("=")[-1] for word in rule.split())


__all__ = ["markdown", "plot"]
