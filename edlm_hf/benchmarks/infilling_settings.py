"""The settings of `edlm benchmark infilling`, and its ways to fill masks."""

from dataclasses import dataclass

from edlm_hf.benchmarks.samplers_settings import SamplerArm, arms_of_lines
from edlm_hf.benchmarks.settings import NetworkSettings, check_distinct, check_positive, steps_option
from edlm_hf.settings import option


@dataclass(frozen=True)
class InfillingSettings(NetworkSettings):
    """The ways to fill masks that are compared, and on which paragraphs.

    The first sampler, at its first T, is what the others are compared with. Candidates are weighed by the energy of the
    model and by the AR model, besides none. The hidden words are those of the first seed.

    Raises:
        ValueError: a value is out of range, a sampler does not exist or is given twice, or an AR
            model is given for one candidate.
    """

    autoregressive: str | None = option(None, help="AR model, as an energy.")
    batch_size: int = option(32, help="Rows per batch.")
    num_paragraphs: int = option(200, old=("paragraphs",), help="Paragraphs of each set.")
    num_words: int = option(5, old=("words",), help="Hidden words of a paragraph.")
    samplers: tuple[str, ...] = option(
        ("ancestral", "first_hitting", "spaced score=entropy"),
        flag="sampler",
        repeated=True,
        help="'spaced score=entropy @4,8'; repeat for more. The others are compared with the first.",
    )
    steps: tuple[int, ...] = steps_option((2, 4, 8), "T of samplers without an @.")
    num_candidates: int = option(1, old=("candidates",), help="Candidates k of every energy; 1 for no energy.")
    greedy: bool = option(False, help="Fill with the likeliest tokens too.")
    seeds: tuple[int, ...] = option((0,), help="Each fills all paragraphs anew.")

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, ("samplers", "steps", "seeds"))
        check_positive(self, ("steps", "num_words", "num_candidates"))

        # Paragraphs are the independent samples: a standard error needs two
        if self.num_paragraphs < 2:
            raise ValueError(f"num_paragraphs is {self.num_paragraphs}, but it must be 2 or more for an error.")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds is {self.seeds}, but a seed must not be negative.")

        for arm in self.sampler_arms():  # which refuses samplers that do not exist or are there twice
            if arm.energy is not None:
                raise ValueError(
                    f"{arm.line!r} brings an energy, but here all samplers have the same ones: give num_candidates."
                )
        if self.autoregressive is not None and self.num_candidates == 1:
            raise ValueError("autoregressive is given, but num_candidates is 1: an energy weighs 2 or more.")

    def sampler_arms(self) -> list[SamplerArm]:
        """Every sampler at every T."""
        return arms_of_lines(self.samplers, self.steps)


@dataclass(frozen=True)
class Filling:
    """A way to fill masks.

    Args:
        sampler: which masks a step reveals.
        energy: "nce" or "ar", None for the denoiser alone.
        num_candidates: k of the energy, 1 without one.
        greedy: take the likeliest tokens, nothing is drawn.
    """

    sampler: SamplerArm
    energy: str | None = None
    num_candidates: int = 1
    greedy: bool = False

    @property
    def tokens(self) -> str:
        """How tokens are found, in words."""
        if self.energy is not None:
            return f"energy {self.energy}, k={self.num_candidates}"
        return "greedy" if self.greedy else "drawn"

    @property
    def label(self) -> str:
        return f"{self.sampler.label}, {self.tokens}"

    def identity(self) -> dict:
        """What a measurement depends on, beside the networks and the paragraphs."""
        return {
            **self.sampler.identity(),
            "energy": self.energy,
            "num_candidates": self.num_candidates,
            "greedy": self.greedy,
        }

    def options(self) -> dict:
        """Arguments of `generate()`."""
        options = self.sampler.options("max_denoising_steps")
        options["num_candidates"] = self.num_candidates
        options["do_sample"] = not self.greedy
        return options


def fillings_of(settings: InfillingSettings, energies: tuple[str, ...]) -> list[Filling]:
    """Every sampler at every T: tokens drawn, chosen by each of the energies, and greedy where wanted.

    Raises:
        ValueError: there are candidates to weigh but no energy.
    """
    k = settings.num_candidates

    # The settings alone do not tell whether the model brings an energy, so this waits until it is loaded
    if k > 1 and not energies:
        raise ValueError(
            f"num_candidates is {k}, but {settings.model} has no NCE energy: give autoregressive, or 1 candidate."
        )

    # Drawn tokens come first: the first row is what all others are compared with
    fillings = [Filling(sampler) for sampler in settings.sampler_arms()]
    if k > 1:
        for energy in energies:
            fillings += [Filling(sampler, energy, k) for sampler in settings.sampler_arms()]
    if settings.greedy:
        fillings += [Filling(sampler, greedy=True) for sampler in settings.sampler_arms()]
    return fillings


__all__ = ["Filling", "InfillingSettings", "fillings_of"]
