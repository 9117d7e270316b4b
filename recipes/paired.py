"""What the bounds of two rows of a study differ by, text by text, with the standard error of the difference.

    python recipes/paired.py results/samplers-prose results/samplers-prose-more-calls

The folders are of `edlm benchmark samplers` on the same texts. Every pair of rows of one set of texts is printed.
"""

import itertools
import json
import math
import sys
from pathlib import Path

from edlm_hf.evaluation.estimate import ratio_estimate


def name_of(row: dict) -> str:
    """The sampler of a row and its T."""
    return f"{row['rule']}, T = {row['steps'] or '∞'}"


def difference(first: dict, second: dict) -> str:
    """Bits per character of the first row less those of the second."""
    pairs = zip(first["sequence_nats"], second["sequence_nats"], strict=True)
    bits = [(a - b) / math.log(2) for a, b in pairs]
    found = ratio_estimate(bits, first["sequence_characters"], "bits/character")
    return f"{found.value:+.3f} ± {found.standard_error:.3f}"


def main():
    studies = [json.loads(Path(folder, "results.json").read_text()) for folder in sys.argv[1:]]
    rows = [row for study in studies for row in study["bounds"]]
    for first, second in itertools.combinations(rows, 2):
        if first["data"] == second["data"]:
            print(f"{difference(second, first)}   {name_of(second)} less {name_of(first)}")


if __name__ == "__main__":
    main()
