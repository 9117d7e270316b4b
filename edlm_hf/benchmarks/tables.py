"""Markdown tables of results. A column is a function from a row of the results to the text in its
cell."""

import math
from collections.abc import Callable

from edlm_hf.evaluation import Estimate

Column = Callable[[dict], str]


def table(columns: dict[str, Column], rows: list[dict]) -> str:
    """A table with a line for each row, its columns under their names."""
    # GitHub Markdown: a line of names, a line of dashes, then the rows
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        cells = [column(row) for column in columns.values()]
        lines.append(cells)

    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(name: str) -> Column:
    """The column of a word or a whole number."""
    return lambda row: str(row[name])


def number(name: str) -> Column:
    """The column of a number with three digits, a dash where there is none."""
    return lambda row: f"{row[name]:.3g}" if name in row else "-"


def estimate(name: str) -> Column:
    """The column of an estimate, `value ± standard error`, a dash where there is none."""

    def column(row: dict) -> str:
        stored = row.get(name)
        if stored is None:
            return "-"
        return rounded(stored)

    return column


def rounded(stored: dict) -> str:
    """A stored estimate to the first digit of its standard error."""
    value = Estimate(stored["value"], error_of(stored), stored["num_samples"], stored["unit"])
    return value.rounded()


def error_of(stored: dict) -> float:
    """The standard error of a stored estimate. JSON has no NaN: that of a single sample is stored as null."""
    error = stored["standard_error"]
    return math.nan if error is None else error


def three_digits(name: str) -> Column:
    """The column of an estimate with three digits behind the point, whatever its error."""

    def column(row: dict) -> str:
        stored = row[name]
        return f"{stored['value']:.3f} ± {error_of(stored):.3f}"

    return column


def signed(difference: dict | None) -> str:
    """A difference with its sign and three digits behind the point, a dash where there is none."""
    if difference is None:
        return "-"
    return f"{difference['value']:+.3f} ± {error_of(difference):.3f}"


def steps(is_limit: Callable[[dict], bool]) -> Column:
    """The column of T: ∞ in rows that are the limit of many steps, a dash where T plays no part."""

    def column(row: dict) -> str:
        if row["steps"] is not None:
            return str(row["steps"])
        return "∞" if is_limit(row) else "-"

    return column


__all__ = ["Column", "estimate", "number", "rounded", "signed", "steps", "table", "text", "three_digits"]
