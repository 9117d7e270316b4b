"""The page of `edlm benchmark samplers`: a table of bounds, and one of samples and their cost."""

from edlm_hf.benchmarks.tables import estimate, number, signed, steps, table, text, three_digits
from edlm_hf.markdown import code_span


def markdown(result: dict) -> str:
    """The page of a result."""
    facts = result["environment"]
    settings = result["settings"]

    # More than one machine where parts of an earlier command were found
    measured_on = sorted({row["hardware"] for row in result["bounds"]})

    # Where and how it was measured, then the bounds
    lines = [
        "# Samplers of one model",
        "",
        f"{facts['date']}, torch {facts['torch']}, transformers {facts['transformers']}, {'; '.join(measured_on)}. "
        f"Model {settings['model']}, L = {result['length']}, {settings['dtype']}, seed {settings['seed']}, batches of "
        f"{settings['batch_size']}.",
        "",
        f"`{facts['command']}`",
        "",
        f"Bounds of {settings['num_texts']} texts of each set at most, in bits per character (± over texts). For rules "
        "whose reveal set follows from what is visible they are exact, and so are those of the AR model. Differences "
        "are paired text by text: ± is the standard error of the difference over texts, noise included. ∞ is one token "
        "per call in random order. 'Worth' is the smallest measured T at which ancestral sampling reaches the bound.",
        "",
        table(BOUND_COLUMNS, result["bounds"]),
    ]

    # Samples come after all bounds, so that a study that is not finished has none
    if result["samples"]:
        lines += [
            "",
            f"Samples, ± one standard error. Judge: {settings['autoregressive']}. Bits under a judge mean nothing "
            "without the entropy beside them. Calls and seconds are per sample: calls of the denoiser "
            "(`autoregressive`: of the AR model), and calls of the energy, one for all candidates of a step; "
            "seconds are the median over batches.",
            "",
            table(SAMPLE_COLUMNS, result["samples"]),
            "",
            "The first texts of each, as they came:",
        ]

        # As quotations, each a span of code, because a text may hold Markdown
        for row in result["samples"]:
            lines += ["", f"**{row['rule']}, T = {steps_of_rule(row)}**"]
            lines += [f"\n> {on_one_line(shown)}" for shown in row["texts"]]
    return "\n".join(lines) + "\n"


def on_one_line(shown: str) -> str:
    """A text as a span of code, its line breaks as ⏎."""
    return code_span(shown.replace("\n", "⏎"))


def minus_ancestral(row: dict, steps: int | None) -> dict | None:
    """The difference of a bound to ancestral sampling at this T, None where it was not measured."""
    for pair in row["minus_ancestral"]:
        if pair["steps"] == steps:
            return pair["difference"]
    return None


def less_ancestral(row: dict) -> str:
    """The cell of the difference at the same T, a dash for rules without T."""
    if row["steps"] is None:
        return "-"
    return signed(minus_ancestral(row, row["steps"]))


def less_limit(row: dict) -> str:
    """The cell of the difference to infinitely many steps."""
    return signed(minus_ancestral(row, None))


def worth(row: dict) -> str:
    """The smallest T of ancestral sampling whose bound is not above the bound of this row.

    Beyond the largest T that was measured it is ∞ if the limit reaches the bound, otherwise "more
    than" the last one.
    """
    if row["rule"] in ("ancestral", "first_hitting"):
        return "-"

    # The first T from below at which this row is not better than ancestral sampling
    pairs = [pair for pair in row["minus_ancestral"] if pair["steps"] is not None]
    pairs.sort(key=lambda pair: pair["steps"])
    for pair in pairs:
        if pair["difference"]["value"] >= 0:
            return str(pair["steps"])

    # No measured T reaches it
    limit = minus_ancestral(row, None)
    if limit is not None:
        return "∞" if limit["value"] >= 0 else "more than ∞"
    if not pairs:
        return "-"
    return f"more than {pairs[-1]['steps']}"


steps_of_rule = steps(is_limit=lambda row: row["rule"] == "first_hitting")

BOUND_COLUMNS = {
    "data": text("data"),
    "sampler": text("rule"),
    "T": steps_of_rule,
    "n": lambda row: str(row["bits_per_character"]["num_samples"]),
    "bits/char": three_digits("bits_per_character"),
    "less ancestral, same T": less_ancestral,
    "less ancestral, ∞": less_limit,
    "worth": worth,
}
SAMPLE_COLUMNS = {
    "sampler": text("rule"),
    "T": steps_of_rule,
    "n": text("num_samples"),
    "bits/char of the judge": estimate("judge_bits"),
    "known words": estimate("known_words"),
    "entropy (bits)": estimate("unigram_entropy"),
    "distinct-2 (tokens)": estimate("distinct_2"),
    "calls": estimate("calls"),
    "of the energy": estimate("energy_calls"),
    "seconds": number("seconds_per_sample"),
}

__all__ = ["markdown", "worth"]
