"""When speculative sampling is faster than the AR model itself: m tokens a round for 1 + r calls.

A round costs one call of the AR model and one of the denoiser, which takes r times as long. It gives
m tokens, for which decoding takes m calls. So the speed-up is m / (1 + r).
"""

from pathlib import Path
from typing import NamedTuple

from edlm_hf.benchmarks.figures import light_frame, new_figure, plain_ticks, save_figure

OTHER_TOKENS = (1.5, 5)
SMALLEST_RATIO = 0.02


class Measured(NamedTuple):
    """What a study found: m tokens a round, and the ratio r that its seconds amount to."""

    tokens_per_round: float
    ratio: float


def speed_up(tokens_per_round: float, ratio: float) -> float:
    """Seconds of AR decoding over those of speculative sampling.

    >>> speed_up(2.5, 1.5), speed_up(2.5, 0.25)
    (1.0, 2.0)
    """
    return tokens_per_round / (1 + ratio)


def measured_round(samples: list[dict], length: int) -> Measured | None:
    """m and r of the rows of a study, None without both `speculative` and `autoregressive`.

    Args:
        samples: the rows of samples.
        length: new tokens of a sample.
    """
    rows = {row["rule"]: row for row in samples}
    if not {"speculative", "autoregressive"} <= rows.keys():
        return None
    speculative = rows["speculative"]
    tokens_per_round = length / speculative["calls"]["value"]

    # seconds of speculative sampling / those of decoding = (1 + r) / m
    share = speculative["seconds_per_sample"] / rows["autoregressive"]["seconds_per_sample"]
    return Measured(tokens_per_round, max(tokens_per_round * share - 1, SMALLEST_RATIO))


def plot(result: dict, output: Path) -> list[str]:
    """Write the plot and return its name, nothing without matplotlib or without these samples."""
    decoding = [row for row in result["samples"] if row["rule"] == "autoregressive"]
    measured = measured_round(result["samples"], decoding[0]["calls"]["value"]) if decoding else None
    figure = new_figure(6.4, 4)
    if figure is None or measured is None:
        return []

    # Lines for m tokens a round, the measured one in black
    axes = figure.subplots()
    largest = max(100, 2 * measured.ratio)
    ratios = [SMALLEST_RATIO * (largest / SMALLEST_RATIO) ** (i / 200) for i in range(201)]
    for tokens in sorted({*OTHER_TOKENS, measured.tokens_per_round}):
        is_measured = tokens == measured.tokens_per_round
        style = {"color": "black", "linewidth": 1.6} if is_measured else {"color": "0.6", "linewidth": 1}
        axes.plot(ratios, [speed_up(tokens, ratio) for ratio in ratios], **style)
        axes.annotate(f"m = {tokens:.3g}", (ratios[0], tokens), (4, 4), textcoords="offset points", fontsize="small")

    # Where it pays, and what was measured
    axes.axhline(1, color="C0", linestyle=":", linewidth=1)
    point = measured.ratio, speed_up(*measured)
    axes.plot(*point, marker="o", color="C3")
    label = f"measured: r = {measured.ratio:.2g}, {point[1]:.2g} times as fast"
    axes.annotate(label, point, (8, 6), textcoords="offset points", fontsize="small", color="C3")

    axes.set(xscale="log", yscale="log", xlabel="r = seconds of a denoiser's call / of an AR call")
    axes.set_ylabel("speed-up over AR decoding, m / (1 + r)")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    light_frame(axes)
    return [save_figure(figure, output / "speculative.png")]


__all__ = ["Measured", "measured_round", "plot", "speed_up"]
