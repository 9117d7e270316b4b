"""When speculative sampling is faster than the AR model itself: m tokens a round for 1 + r calls.

A round costs one call of the AR model and one of the denoiser, which takes r times as long. It gives
m tokens, for which decoding takes m calls. So the speed-up is m / (1 + r).
"""

from pathlib import Path
from typing import NamedTuple

from edlm_hf.benchmarks.figures import light_frame, new_figure, plain_ticks, save_figure

# m of the grey lines, for orientation beside the measured one
OTHER_TOKENS = (1.5, 5)
# r, where the axis begins. Noise in the seconds can make a measured r smaller, and even negative
SMALLEST_RATIO = 0.02
# Points of a line, at equal distances on the logarithmic axis
NUM_POINTS = 201


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

    # A round is one call of the denoiser
    speculative = rows["speculative"]
    tokens_per_round = length / speculative["calls"]["value"]

    # seconds of speculative sampling / seconds of decoding = (1 + r) / m
    share = speculative["seconds_per_sample"] / rows["autoregressive"]["seconds_per_sample"]
    ratio = tokens_per_round * share - 1
    return Measured(tokens_per_round, max(ratio, SMALLEST_RATIO))


def plot(result: dict, output: Path) -> list[str]:
    """Write the plot and return its name, nothing without matplotlib or without these samples."""
    # Decoding makes one call for each new token, which tells how many there are
    decoding = [row for row in result["samples"] if row["rule"] == "autoregressive"]
    measured = None
    if decoding:
        new_tokens = decoding[0]["calls"]["value"]
        measured = measured_round(result["samples"], new_tokens)

    figure = new_figure(6.4, 4)
    if figure is None or measured is None:
        return []

    # Lines for m tokens a round, the measured one in black
    axes = figure.subplots()
    ratios = ratios_of_axis(largest=max(100, 2 * measured.ratio))
    beside_point = {"textcoords": "offset points", "fontsize": "small"}
    for tokens in sorted({*OTHER_TOKENS, measured.tokens_per_round}):
        style = {"color": "0.6", "linewidth": 1}
        if tokens == measured.tokens_per_round:
            style = {"color": "black", "linewidth": 1.6}

        # For small r the line is at m itself, where its name stands
        speed_ups = [speed_up(tokens, ratio) for ratio in ratios]
        axes.plot(ratios, speed_ups, **style)
        axes.annotate(f"m = {tokens:.3g}", (ratios[0], tokens), (4, 4), **beside_point)

    # Above 1 speculative sampling pays
    axes.axhline(1, color="C0", linestyle=":", linewidth=1)

    # What was measured
    fastness = speed_up(*measured)
    point = (measured.ratio, fastness)
    axes.plot(*point, marker="o", color="C3")
    label = f"measured: r = {measured.ratio:.2g}, {fastness:.2g} times as fast"
    axes.annotate(label, point, (8, 6), color="C3", **beside_point)

    # Both axes are logarithmic, because both are ratios
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="r = seconds of a denoiser's call / of an AR call",
    )
    axes.set_ylabel("speed-up over AR decoding, m / (1 + r)")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    light_frame(axes)
    return [save_figure(figure, output / "speculative.png")]


def ratios_of_axis(largest: float) -> list[float]:
    """Values of r in equal distances on a logarithmic axis that ends at `largest`."""
    intervals = NUM_POINTS - 1
    growth = largest / SMALLEST_RATIO
    return [SMALLEST_RATIO * growth ** (i / intervals) for i in range(NUM_POINTS)]


__all__ = ["Measured", "measured_round", "plot", "speed_up"]
