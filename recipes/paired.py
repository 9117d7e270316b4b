"""What the bounds of two rows of a study differ by, text by text, with the standard error of the difference.

    python recipes/paired.py results/samplers-prose results/samplers-prose-more-calls

The folders are of `edlm benchmark samplers` on the same texts. Every pair of rows of one set of texts is printed.
"""

import itertools
import json
import sys
from pathlib import Path

from edlm_hf.benchmarks.samplers import difference


def name_of(row: dict) -> str:
    """The sampler of a row and its T."""
    return f"{row['rule']}, T = {row['steps'] or '∞'}"


def main():
    studies = [json.loads(Path(folder, "results.json").read_text()) for folder in sys.argv[1:]]
    rows = [row for study in studies for row in study["bounds"]]
    for first, second in itertools.combinations(rows, 2):
        if first["data"] == second["data"]:
            found = difference(second, first)
            print(f"{found.value:+.3f} ± {found.standard_error:.3f}   {name_of(second)} less {name_of(first)}")


if __name__ == "__main__":
    main()
