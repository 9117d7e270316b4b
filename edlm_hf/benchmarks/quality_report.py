"""The results of `edlm benchmark quality` as Markdown tables and as plots. They hold numbers only: see `quality.py`."""

import itertools
import math
from pathlib import Path

from edlm_hf.benchmarks.report import new_figure, save_figure
from edlm_hf.evaluation import Estimate

CAVEAT = (
    "Generative perplexity means nothing without the entropy beside it: lower entropy lowers it. A bound of an energy "
    "above that of MDLM says nothing against the sampler: it is loose, less so for larger m."
)
SAME_JUDGE = (
    "The judge is the AR model of the study, which favours the arms that use it as their energy: read with care."
)


def markdown(result: dict) -> str:
    """Two tables: samples with their cost, and bounds."""
    facts, settings = result["environment"], result["settings"]
    measured = sorted({place for row in result["samples"] for place in row.get("hardware", ())})
    judge = settings["judge"] or f"{settings['autoregressive'] or settings['model']} (the AR model, its own tokens)"
    lines = [
        "# Quality of samplers at equal work",
        "",
        f"{facts['date']}, torch {facts['torch']}, transformers {facts['transformers']}. Model {settings['model']}, "
        f"L = {result['length']}, k = {settings['num_candidates']}, w = {settings['window']}, seeds "
        f"{', '.join(map(str, settings['seeds']))}. Seconds are those of {'; '.join(measured)}, in batches of "
        f"{settings['batch_size']}, {settings['dtype']}.",
        "",
        f"`{facts['command']}`",
        "",
        f"Gen-PPL under {judge}. {CAVEAT}{'' if settings['judge'] else ' ' + SAME_JUDGE}",
        "",
        "Samples, ± one standard error. Calls, GFLOP and seconds are per sample; GFLOP count every call as a whole "
        "forward pass (k of them for the energy); calls of AR are of one token each. sd(E) in nats and the effective "
        "sample size (ESS, of k) are means over steps.",
        "",
        table(SAMPLE_COLUMNS, result["samples"]),
        "",
        f"Bounds of the negative log-likelihood (AR: exact) of at most {settings['num_texts']} texts per set, ± the "
        "standard error of the noise. Less MDLM: nats/token of the largest m minus those of MDLM at the same T, on the "
        "same texts and noise, ± the standard error over texts of that difference.",
        "",
        bound_table(result),
    ]
    return "\n".join(lines) + "\n"


def table(columns: dict, rows: list[dict]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[column(row) for column in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def value(name: str):
    """The column of an estimate, `value ± standard error`; a dash where there is none."""

    def column(row: dict) -> str:
        found = row.get(name)
        return "-" if found is None else rounded(found)

    return column


def rounded(found: dict) -> str:
    error = math.nan if found["standard_error"] is None else found["standard_error"]
    return Estimate(found["value"], error, found["num_samples"], found["unit"]).rounded()


def mean_over_steps(name: str):
    """Mean of a column of the profile, each step counting as often as it was taken."""

    def column(row: dict) -> str:
        steps = row.get("profile")
        if not steps:
            return "-"
        total = sum(step["num_samples"] for step in steps)
        return f"{sum(step[name] * step['num_samples'] for step in steps) / total:.2f}"

    return column


def number(name: str):
    return lambda row: f"{row[name]:.3g}" if name in row else "-"


def steps_of(row: dict) -> str:
    return str(row["steps"] or ("∞" if row.get("arm") == "MDLM" else "-"))


SAMPLE_COLUMNS = {
    "samples": lambda row: row["samples"],
    "T": steps_of,
    "n": lambda row: str(row["num_samples"]),
    "Gen-PPL": value("generative_perplexity"),
    "entropy (bits)": value("unigram_entropy"),
    "word entropy (bits)": value("word_entropy"),
    "distinct bigrams": value("distinct_2"),
    "known words": value("known_words"),
    "denoiser calls": value("denoiser_calls"),
    "energy calls": value("energy_calls"),
    "sd(E) (nats)": mean_over_steps("energy_sd"),
    "ESS": mean_over_steps("effective_sample_size"),
    "GFLOP": number("gigaflops_per_sample"),
    "seconds": number("seconds_per_sample"),
}


def bound_table(result: dict) -> str:
    """A row per set of texts, arm and T; a column for each number m of inner copies."""
    most = max(result["settings"]["inner_copies"])
    smaller = [m for m in result["settings"]["inner_copies"] if m != most]
    copies = {(*place(row), row["inner_copies"]): row for row in result["bounds"]}

    def with_copies(m: int):
        return lambda row: rounded(copies[*place(row), m]["nats_per_token"]) if (*place(row), m) in copies else "-"

    columns = {name: lambda row, name=name: str(row[name]) for name in ("data", "arm")}
    columns |= {"T": steps_of, "bound": lambda row: row["bound"]}
    columns |= {f"nats/token, m = {m}": with_copies(m) for m in smaller}
    columns |= {f"nats/token, m = {most} or none": value("nats_per_token"), "bits/char": value("bits_per_character")}
    columns["less MDLM"] = value("minus_mdlm")
    rows = [row for row in result["bounds"] if row["inner_copies"] in (None, most)]
    return table(columns, sorted(rows, key=lambda row: row["data"]))


def place(row: dict) -> tuple:
    return row["data"], row["arm"], row["steps"]


# --------------------------------------------------------------------------------------------------------------- plots


def plot(result: dict, output: Path) -> list[str]:
    """The four plots; none without matplotlib."""
    figures = {
        "quality_entropy.png": entropy_figure(result),
        "quality_cost.png": cost_figure(result),
        "effective_sample_size.png": size_figure(result),
        "bound.png": bound_figure(result),
    }
    return [save_figure(figure, output / name) for name, figure in figures.items() if figure is not None]


def colours(result: dict) -> dict[str, str]:
    arms = dict.fromkeys(row["samples"] for row in result["samples"] if "profile" in row)
    return {arm: f"C{i}" for i, arm in enumerate(arms)}


def of_arm(result: dict, arm: str) -> list[dict]:
    return sorted((row for row in result["samples"] if row["samples"] == arm), key=lambda row: row["steps"] or 0)


def of_data(result: dict) -> list[dict]:
    return [row for row in result["samples"] if "profile" not in row]


def errors(row: dict, name: str) -> float:
    return row[name]["standard_error"] or 0.0


def draw_arm(axes, rows: list[dict], abscissae: list[float], label: str, colour: str, xerr=None) -> None:
    """Gen-PPL of an arm along T with one standard error; T is written at the points."""
    perplexities = [row["generative_perplexity"]["value"] for row in rows]
    spread = [errors(row, "generative_perplexity") for row in rows]
    marker = "D" if rows[0]["steps"] is None else "o"
    style = {"marker": marker, "markersize": 4, "capsize": 2, "linewidth": 1.2, "elinewidth": 0.8}
    axes.errorbar(abscissae, perplexities, yerr=spread, xerr=xerr, color=colour, label=label, **style)
    for row, x, y in zip(rows, abscissae, perplexities, strict=True):
        if row["steps"] is not None:
            axes.annotate(row["steps"], (x, y), (4, 4), textcoords="offset points", fontsize="x-small", color=colour)


def plain_ticks(axis) -> None:
    """Numbers, not powers of ten, on a logarithmic axis; between the decades only where there are few of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def entropy_figure(result: dict):
    """Gen-PPL against unigram entropy: good samples are at the place of the data, not below it."""
    figure = new_figure(6.5, 4.5)
    if figure is None:
        return None
    axes = figure.subplots()
    for arm, colour in colours(result).items():
        rows = of_arm(result, arm)
        entropies = [row["unigram_entropy"]["value"] for row in rows]
        draw_arm(axes, rows, entropies, arm, colour, xerr=[errors(row, "unigram_entropy") for row in rows])
    for row, marker in zip(of_data(result), itertools.cycle("*PXs")):
        at = row["unigram_entropy"]["value"], row["generative_perplexity"]["value"]
        error = {"xerr": errors(row, "unigram_entropy"), "yerr": errors(row, "generative_perplexity")}
        axes.errorbar(*at, **error, fmt=marker, color="black", markersize=7, elinewidth=0.8, label=row["samples"])
    axes.set(xlabel="unigram entropy of a sample (bits)", ylabel="generative perplexity", yscale="log")
    plain_ticks(axes.yaxis)
    finish(axes, "numbers: steps T; bars: one standard error")
    return figure


def cost_figure(result: dict):
    """Gen-PPL against the two measures of work."""
    figure = new_figure(11, 4.5)
    if figure is None:
        return None
    panels = figure.subplots(1, 2, sharey=True)
    works = {"seconds_per_sample": "seconds per sample", "gigaflops_per_sample": "GFLOP per sample"}
    for axes, (name, label) in zip(panels, works.items(), strict=True):
        for arm, colour in colours(result).items():
            rows = of_arm(result, arm)
            draw_arm(axes, rows, [row[name] for row in rows], arm, colour)
        for row, style in zip(of_data(result), itertools.cycle((":", "--", "-."))):
            at = row["generative_perplexity"]["value"]
            axes.axhline(at, color="black", linestyle=style, linewidth=1, label=row["samples"])
        axes.set(xlabel=label, xscale="log", yscale="log")
        plain_ticks(axes.yaxis)
        plain_ticks(axes.xaxis)
        finish(axes, None, legend=False)
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0].set_ylabel("generative perplexity")
    figure.suptitle("numbers: steps T; bars: one standard error", fontsize="small", color="0.4")
    return figure


def size_figure(result: dict):
    """Effective sample size against t, a panel per energy; None where nothing was weighed."""
    arms = [arm for arm in colours(result) if any(row["profile"] for row in of_arm(result, arm))]
    figure = new_figure(0.8 + 3.6 * max(1, len(arms)), 3.8)
    if figure is None or not arms:
        return None
    from matplotlib import colormaps

    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        rows = [row for row in of_arm(result, arm) if row["profile"]]
        for i, row in enumerate(rows):
            times, sizes, spread = (
                [step[name] or 0.0 for step in row["profile"]]
                for name in ("t", "effective_sample_size", "standard_error")
            )
            colour = colormaps["viridis"](i / max(1, len(rows) - 1) * 0.9)
            axes.plot(
                times, sizes, color=colour, marker="o" if len(times) < 40 else "", markersize=3, label=row["steps"]
            )
            low, high = ([size + sign * error for size, error in zip(sizes, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(title=arm, xlabel="t (1: all masked)", xlim=(1.02, -0.02))
        axes.set_ylim(0.9, result["settings"]["num_candidates"] + 0.1)
        finish(axes, None, legend=False)
    panels[0].set_ylabel(f"effective sample size of k = {result['settings']['num_candidates']}")
    panels[-1].legend(title="steps T", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bound_figure(result: dict):
    """Bounds against T, a panel per set of texts; of the energies the one with the most inner copies."""
    sets = list(dict.fromkeys(row["data"] for row in result["bounds"]))
    figure = new_figure(2 + 4.2 * max(1, len(sets)), 4)
    if figure is None or not sets:
        return None
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    most = max(result["settings"]["inner_copies"])
    for axes, name in zip(panels, sets, strict=True):
        for i, (arm, colour) in enumerate(colours(result).items()):
            rows = [row for row in result["bounds"] if (row["data"], row["arm"]) == (name, arm)]
            for row in rows:
                if row["steps"] is None:
                    label = "AR (exact)" if arm == "AR" else f"{arm}, T = ∞"
                    style = {"color": colour, "linestyle": "--", "linewidth": 1, "label": label}
                    axes.axhline(row["bits_per_character"]["value"], **style)
            rows = [row for row in rows if row["steps"] and row["inner_copies"] in (None, most)]
            if rows:
                values, spread = (
                    [row["bits_per_character"][x] or 0.0 for row in rows] for x in ("value", "standard_error")
                )
                label = arm if rows[0]["inner_copies"] is None else f"{arm}, m = {most}"
                style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2, "color": colour}
                axes.errorbar([row["steps"] * 1.03**i for row in rows], values, yerr=spread, label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set(title=name, xlabel="steps T", xticks=sorted(result["settings"]["steps"]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        finish(axes, None, legend=False)
    panels[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0].set_ylabel("bound (bits per character)")
    figure.suptitle("bars: one standard error of the noise, which the arms share", fontsize="small", color="0.4")
    return figure


def finish(axes, title: str | None, legend: bool = True) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize="small", color="0.4")
    if legend:
        axes.legend(fontsize="small", frameon=False)


__all__ = ["markdown", "plot"]
