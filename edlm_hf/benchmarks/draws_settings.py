"""The settings of `edlm benchmark draws`."""

import math
from dataclasses import dataclass

from edlm_hf.benchmarks.settings import check_distinct, check_positive, steps_option
from edlm_hf.settings import option


@dataclass(frozen=True)
class DrawSettings:
    """The distribution of every position, and the steps that draw from it.

    Raises:
        ValueError: a size is not positive, an exponent or a number of positions is negative.
    """

    steps: tuple[int, ...] = steps_option((128, 256, 512, 1024))
    vocab_size: int = option(50_258, help="V, with the mask.")
    exponent: float = option(1.0, help="Of the Zipf distribution.")
    positions: int = option(0, help="Tokens to draw as well, by the published steps.")
    seed: int = option(0, help="Of all randomness.")

    def __post_init__(self):
        check_distinct(self, ("steps",))
        check_positive(self, ("steps",))

        # With a single token there would be nothing to draw
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be 3 or more: the mask and two tokens.")

        # The exponent 0 is the uniform distribution
        for name in ("exponent", "positions"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be 0 or more.")


__all__ = ["DrawSettings"]
