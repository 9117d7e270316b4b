"""The page of `edlm benchmark infilling`: a table for each set of texts."""

from edlm_hf.benchmarks.paragraphs import WORDS_PER_HIDDEN_WORD
from edlm_hf.benchmarks.tables import estimate, number, signed, steps, table, text, three_digits


def markdown(result: dict) -> str:
    """The page of a result."""
    facts = result["environment"]
    settings = result["settings"]
    measured_on = sorted({row["hardware"] for row in result["rows"]})
    seeds = ", ".join(map(str, settings["seeds"]))
    energy = f", AR energy {settings['autoregressive']}" if settings["autoregressive"] else ""

    # How it was measured, and the definitions that the numbers need
    lines = [
        "# Hidden words found again",
        "",
        f"{facts['date']}, torch {facts['torch']}, transformers {facts['transformers']}, {'; '.join(measured_on)}. "
        f"Model {settings['model']}{energy}, L = {result['length']}, {settings['dtype']}, seeds {seeds}, batches of "
        f"{settings['batch_size']}.",
        "",
        f"`{facts['command']}`",
        "",
        f"{settings['num_words']} words of every paragraph are hidden: whole words of letters alone, a mask for each "
        f"of their tokens. The paragraphs are drawn at random from those that fit the model and have at least "
        f"{WORDS_PER_HIDDEN_WORD * settings['num_words']} words. A word is recovered if all of it is as it was. "
        "± is one standard error over paragraphs, and the difference to the first row is paired paragraph by "
        "paragraph. Calls and seconds are per paragraph.",
    ]

    # A table for each set of texts. Its first row is the one that the others are compared with
    for texts in result["texts"]:
        rows = [row for row in result["rows"] if row["data"] == texts["data"]]
        lines += [
            "",
            f"## {texts['data']}",
            "",
            f"{texts['num_paragraphs']} paragraphs, {texts['num_words']} hidden words, {texts['num_masks']} masks "
            f"among {texts['num_tokens']} tokens.",
            "",
            table(COLUMNS, rows),
        ]
    return "\n".join(lines) + "\n"


COLUMNS = {
    "sampler": text("sampler"),
    "T": steps(is_limit=lambda row: row["sampler"] == "first_hitting"),
    "tokens": text("tokens"),
    "recovered": three_digits("share_recovered"),
    "less the first": lambda row: signed(row["difference"]),
    "calls": estimate("denoiser_calls"),
    "of the energy": estimate("energy_calls"),
    "seconds": number("seconds_per_paragraph"),
}

__all__ = ["markdown"]
