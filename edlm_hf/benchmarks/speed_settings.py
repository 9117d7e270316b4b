"""The settings of `edlm benchmark speed`, and the comparisons that follow from them."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from edlm_hf.benchmarks.settings import DTYPES, check_positive, dtype_option, steps_option
from edlm_hf.settings import check_dtype, device_option, existing_device, option

MODES = ("mdlm", "ar", "first_hitting", "planned")
PUBLISHED, OURS = "published", "ours"

# T of the planner -> a T of ancestral sampling whose bound is not better (256 texts, results/samplers).
# In bits per character: 2.229 (8) and 2.239 (256), 2.203 (16) and 2.235 (1024).
EQUAL_BOUND = {8: 256, 16: 1024}

# The sizes that are varied one at a time, and their fields in `Comparison`
AXES = {"L": "length", "V": "vocab_size", "k": "num_candidates", "T": "steps", "B": "batch_size"}


@dataclass(frozen=True)
class Comparison:
    """One mode at one size. `steps` is T of the published sampler, `own_steps` is T of ours."""

    mode: str
    vocab_size: int
    length: int
    steps: int
    batch_size: int
    num_candidates: int
    own_steps: int

    def steps_of(self, side: str) -> int:
        return self.own_steps if side == OURS else self.steps


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured: every combination of vocabulary, batch size, number of steps and mode.

    `mdlm` has no energy (k = 1). `ar` weighs k complete sequences by the autoregressive energy in the window
    [1 - w, 1]. `first_hitting` reveals one token per call, the distribution of T -> infinity, and is compared with
    published MDLM at the largest T. `planned` is the spaced planner at T of `planned_steps` against published MDLM at
    the T whose bound is not better (`EQUAL_BOUND`). The fields have the names that they have in results.

    Raises:
        ValueError: a value is out of range.
    """

    modes: tuple[str, ...] = option(MODES, help="What is compared with the published sampler.")
    vocab_sizes: tuple[int, ...] = option((28, 50258), help="V, with the mask.")
    steps: tuple[int, ...] = steps_option((16, 64, 128, 256, 1024))
    planned_steps: tuple[int, ...] = option(tuple(EQUAL_BOUND), help="T of planned, of these values.")
    batch_sizes: tuple[int, ...] = option((1, 8, 32), help="Rows per batch.")
    length: int = option(256, help="Tokens per row.")
    width: int = option(256, flag="hidden-dim", old=("width",), help="Width of both networks.")
    blocks: int = option(8, flag="n-blocks", old=("blocks",), help="Transformer blocks of each.")
    candidates: int = option(8, flag="num-candidates", old=("candidates",), help="k of the AR energy.")
    window: float = option(1.0, flag="energy-window", old=("window",), help="w: energy at t in [1 - w, 1].")
    repeats: int = option(5, help="Timed runs per side, after a warm-up.")
    dtype: str = dtype_option()
    device: str = device_option()
    compile: bool = option(False, help="torch.compile both networks, for both sides.")
    scaling: bool = option(False, help="Also the time of ours against L, V, k, T and B alone.")
    seed: int = option(0, help="Of the weights.")

    def __post_init__(self):
        lists = ("modes", "vocab_sizes", "steps", "planned_steps", "batch_sizes")
        for name in lists:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty. Give at least one value, separated by commas.")
        check_positive(self, (*lists[1:], "length", "width", "blocks", "candidates", "repeats"))

        # The equal bounds were measured, so that no other T of the planner has a partner
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f"modes has {mode!r}, but there are only {', '.join(MODES)}.")
        for steps in self.planned_steps:
            if steps not in EQUAL_BOUND:
                known = " and ".join(map(str, EQUAL_BOUND))
                raise ValueError(f"planned_steps has {steps}, but equal bounds are known for {known} only.")

        check_dtype(self.dtype, DTYPES)
        existing_device(self.device)
        if min(self.vocab_sizes) < 3:
            raise ValueError(f"vocab_sizes has {min(self.vocab_sizes)}, but two tokens and the mask are needed.")
        if not 0 <= self.window <= 1:
            raise ValueError(f"window is {self.window}, but it must lie in [0, 1].")

    def comparisons(self) -> Iterator[Comparison]:
        """Every combination of the sizes. V is the outermost, since a model has one vocabulary."""
        sizes = itertools.product(self.vocab_sizes, self.batch_sizes, self.modes)
        for vocab_size, batch_size, mode in sizes:
            for steps, own_steps in self.pairs_of_steps(mode):
                yield Comparison(
                    mode=mode,
                    vocab_size=vocab_size,
                    length=self.length,
                    steps=steps,
                    batch_size=batch_size,
                    num_candidates=self.candidates_of(mode),
                    own_steps=own_steps,
                )

    def candidates_of(self, mode: str) -> int:
        """k of a mode, 1 without an energy."""
        return self.candidates if mode == "ar" else 1

    def pairs_of_steps(self, mode: str) -> list[tuple[int, int]]:
        """The values of T, of the published sampler and of ours, that are compared."""
        if mode == "planned":
            return [(EQUAL_BOUND[steps], steps) for steps in self.planned_steps]

        # First hitting has the distribution of T -> infinity, to which the largest T is nearest
        compared = self.steps
        if mode == "first_hitting":
            compared = (max(self.steps),)
        return [(steps, steps) for steps in compared]

    def scaling_comparisons(self) -> Iterator[tuple[str, Comparison]]:
        """Each size alone at 1/4, 1/2, 1 and 2 times (B: 1, 2 and 4 times) a middle one.

        The middle has the largest V, the smallest B, the median of T, and the energy if `ar` is
        among the modes.
        """
        mode = "ar" if "ar" in self.modes else self.modes[0]
        steps = sorted(self.steps)[len(self.steps) // 2]
        middle = Comparison(
            mode=mode,
            vocab_size=max(self.vocab_sizes),
            length=self.length,
            steps=steps,
            batch_size=min(self.batch_sizes),
            num_candidates=self.candidates_of(mode),
            own_steps=steps,
        )

        # One size differs from the middle at a time. T is the same on both sides
        for axis, name in AXES.items():
            for value in sizes_along(axis, getattr(middle, name), mode):
                changes = {name: value}
                if axis == "T":
                    changes["own_steps"] = value
                yield axis, dataclasses.replace(middle, **changes)


def sizes_along(axis: str, middle: int, mode: str) -> list[int]:
    """The values of one size around its middle."""
    # The middle of B is usually 1, of which there is no half
    factors = (1, 2, 4) if axis == "B" else (0.25, 0.5, 1, 2)
    smallest = 3 if axis == "V" else 1
    sizes = {max(smallest, round(middle * factor)) for factor in factors}

    # One candidate needs no energy, which is another algorithm
    if axis == "k":
        sizes.discard(1)
        if mode != "ar":
            return []
    return sorted(sizes)


# A first look, in under two minutes
QUICK = {
    "vocab_sizes": (28, 8192),
    "steps": (16, 64),
    "batch_sizes": (1,),
    "length": 64,
    "width": 128,
    "blocks": 4,
    "candidates": 4,
    "repeats": 3,
}

__all__ = ["AXES", "OURS", "PUBLISHED", "QUICK", "Comparison", "SpeedSettings"]
