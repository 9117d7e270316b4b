"""The settings of `edlm benchmark samplers`, and ways to sample that are written in one line."""

import math
from dataclasses import dataclass

from edlm_hf.benchmarks.settings import StudySettings, check_distinct, check_positive, steps_option
from edlm_hf.parsing import value_of
from edlm_hf.settings import option

# The line of the AR model alone, and that of the sampler which draws from it exactly
AUTOREGRESSIVE = "autoregressive"
SPECULATIVE = "speculative"

# What a line can name beside the parameters of its sampler
ENERGY, CANDIDATES = "energy", "candidates"
# How tokens are drawn from the proposal, wherever they stand
TEMPERATURE = "temperature"
ENERGIES = ("ar", "nce")
# k of a line that has an energy and does not say how many candidates
DEFAULT_CANDIDATES = 8

# The rules, with their values of T after @ where they are not those of `SamplerSettings.steps`
SAMPLERS = (
    "ancestral @2,4,8,16,32,64,128,256,1024",
    "first_hitting",
    "dilated",
    "spaced score=entropy",
    "spaced score=random",
    "spaced score=confidence",
    "spaced score=margin",
    "spaced score=entropy distance=8",
    "spaced score=entropy distance=32",
    "top_k score=entropy",
    "entropy_bound gamma=0.1",
    "entropy_bound gamma=1.0",
    "entropy_bound gamma=4.0",
    "threshold threshold=0.9",
    "factor factor=1.0",
    "klass",
)


@dataclass(frozen=True)
class SamplerSettings(StudySettings):
    """The samplers that are compared, on which texts and samples.

    A sampler is a name, parameters, and values of T: `spaced score=entropy @8,16`. With `energy=ar candidates=8` an
    energy weighs k candidates: that of the AR model, or "nce", that of the model itself. With `temperature=0.9` tokens
    are drawn, and their likelihood is measured, at that temperature. `speculative` and `autoregressive` are samples of
    the AR model.

    Raises:
        ValueError: a value is out of range, or a sampler does not exist or is given twice.
    """

    autoregressive: str = option(help="AR model that judges the samples.")
    num_texts: int = option(256, old=("texts",), help="Blocks of each set for the bounds.")
    batch_size: int = option(32, help="Rows per batch.")
    samplers: tuple[str, ...] = option(
        SAMPLERS,
        flag="sampler",
        repeated=True,
        shown="a list of all rules",
        help="'spaced score=entropy @8,16'; repeat for more.",
    )
    steps: tuple[int, ...] = steps_option((4, 8, 16, 32), "T of samplers without an @.")
    inner_copies: int | None = option(None, shown="no such bounds", help="m of bounds with an energy.")
    num_generated: int = option(
        256, flag="num-return-sequences", old=("samples",), help="Samples of each; 0: bounds alone."
    )
    sampled: tuple[str, ...] = option(
        (), repeated=True, shown="all", help="One of the samplers, to make samples with; repeat for more."
    )
    seed: int = option(0, help="Of all randomness.")

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, ("steps",))
        check_positive(self, ("steps",))

        # 0 leaves the samples out, and a single one has no standard error
        if self.num_generated < 0 or self.num_generated == 1:
            raise ValueError(f"num_generated is {self.num_generated}, but it must be 0, or 2 and more for an error.")

        if self.inner_copies is not None:
            check_positive(self, ("inner_copies",))
        self.arms()  # which refuses samplers that do not exist or are there twice

        unknown = sorted(set(self.sampled) - set(self.samplers))
        if unknown:
            raise ValueError(
                f"sampled has {', '.join(unknown)}, but each must stand in samplers too, letter by letter."
            )

    def arms(self) -> list["SamplerArm"]:
        """Every sampler at every T."""
        return arms_of_lines(self.samplers, self.steps)

    def bounded_arms(self) -> list["SamplerArm"]:
        """The arms whose likelihood is measured."""
        # A bound with an energy needs m, and there is no m that would be right for all
        return [arm for arm in self.arms() if not arm.is_weighed or self.inner_copies is not None]

    def sampled_arms(self) -> list["SamplerArm"]:
        """The arms that make samples."""
        if not self.num_generated:
            return []
        return [arm for arm in self.arms() if not self.sampled or arm.line in self.sampled]


@dataclass(frozen=True)
class SamplerArm:
    """A way to sample.

    Args:
        line: how the settings write it.
        sampler: name of the sampler, or `AUTOREGRESSIVE`.
        parameters: of the sampler, and `temperature` where the line has one.
        steps: T, None where the number of calls does not depend on it.
        energy: "ar" or "nce", None for the denoiser alone.
        num_candidates: k, 1 where nothing is weighed.
    """

    line: str
    sampler: str
    parameters: tuple[tuple[str, object], ...]
    steps: int | None
    energy: str | None = None
    num_candidates: int = 1

    @property
    def is_autoregressive(self) -> bool:
        """Whether its distribution is that of the AR model."""
        return self.sampler in (AUTOREGRESSIVE, SPECULATIVE)

    @property
    def is_weighed(self) -> bool:
        return self.num_candidates > 1

    @property
    def rule(self) -> str:
        """The sampler, its parameters and its energy in words, without T."""
        words = [self.sampler]
        words += [f"{name}={value}" for name, value in self.parameters]
        if self.is_weighed:
            words += [f"{ENERGY}={self.energy}", f"{CANDIDATES}={self.num_candidates}"]
        return " ".join(words)

    @property
    def label(self) -> str:
        return self.rule if self.steps is None else f"{self.rule} T={self.steps}"

    def identity(self) -> dict:
        """What a measurement depends on, beside the model and the texts."""
        identity = {
            "sampler": self.sampler,
            "parameters": dict(self.parameters),
            "steps": self.steps,
        }
        if self.energy is not None:
            identity["energy"] = self.energy
            identity["num_candidates"] = self.num_candidates
        return identity

    def options(self, name_of_steps: str) -> dict:
        """Arguments of `generate()` or of a bound, which have different names for T."""
        options = {
            "sampler": self.sampler,
            "num_candidates": self.num_candidates,
            **dict(self.parameters),
        }
        if self.steps is not None:
            options[name_of_steps] = self.steps
        return options


def arms_of_lines(lines: tuple[str, ...], steps: tuple[int, ...]) -> list[SamplerArm]:
    """The arms of several lines.

    Raises:
        ValueError: an arm is there twice, or as `arms_of_line`.
    """
    arms = [arm for line in lines for arm in arms_of_line(line, steps)]
    labels = [arm.label for arm in arms]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"samplers has {', '.join(repeated)} more than once. Give each sampler and T once.")
    return arms


def arms_of_line(line: str, steps: tuple[int, ...]) -> list[SamplerArm]:
    """The arms of `NAME [parameter=value ...] [energy=ar|nce [candidates=k]] [@T,T,...]`, one for every T.

    A temperature stands among the parameters.

    >>> [arm.label for arm in arms_of_line("spaced distance=8 @4,8", steps=(16,))]
    ['spaced distance=8 T=4', 'spaced distance=8 T=8']

    Raises:
        ValueError: the line does not have this form, or the sampler refuses a parameter.
    """
    # 1. The name and the parameters
    rule, at, numbers = line.partition("@")
    name, *words = rule.split() or [""]
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{line!r} is not a sampler like 'spaced distance=8 score=entropy @8,16'.")
        parameters[key] = value_of(value)

    # 2. The energy and k, which are not parameters of the sampler
    energy, num_candidates = energy_of_line(line, name, parameters)
    check_temperature(line, name, parameters)

    # 3. The values of T: after the @, else the ones of the settings
    if at:
        steps = steps_of_line(line, numbers)
    if min(steps) < 1:
        raise ValueError(f"{line!r} has T = {min(steps)}, but T must be positive.")

    # 4. One arm where T changes nothing. The samplers refuse unknown names and parameters here
    if name == AUTOREGRESSIVE:
        if parameters:
            raise ValueError(f"{line!r} has parameters, but the AR model is sampled as it is.")
        steps = (None,)
    elif not depends_on_steps(name, parameters):
        steps = (None,)

    # An arm must be hashable, so that its parameters are pairs and not a dictionary
    common = (line, name, tuple(parameters.items()))
    return [SamplerArm(*common, number, energy, num_candidates) for number in steps]


def energy_of_line(line: str, name: str, parameters: dict) -> tuple[str | None, int]:
    """The energy and k of a line, taken out of its `parameters`. None and 1 without an energy."""
    energy = parameters.pop(ENERGY, None)
    num_candidates = parameters.pop(CANDIDATES, None)

    # Samples of the AR model itself: it is loaded like an energy, but weighs no candidates
    if name in (AUTOREGRESSIVE, SPECULATIVE):
        if energy is not None or num_candidates is not None:
            raise ValueError(f"{line!r} draws from the AR model itself: leave out energy and candidates.")
        return "ar", 1

    if energy is None:
        if num_candidates is not None:
            raise ValueError(f"{line!r} has candidates, but nothing weighs them: add energy=ar or energy=nce.")
        return None, 1

    if energy not in ENERGIES:
        raise ValueError(f"{line!r} has the energy {energy}, but it must be {' or '.join(ENERGIES)}.")

    # Without a number of candidates k is the one of `edlm benchmark quality`
    if num_candidates is None:
        num_candidates = DEFAULT_CANDIDATES
    if not isinstance(num_candidates, int) or num_candidates < 2:
        raise ValueError(f"{line!r} has candidates={num_candidates}, but an energy weighs 2 or more.")
    return energy, num_candidates


def check_temperature(line: str, name: str, parameters: dict) -> None:
    """Check the temperature of a line, if it has one.

    Raises:
        ValueError: it is not a positive number, or the line draws from the AR model.
    """
    if TEMPERATURE not in parameters:
        return
    if name in (AUTOREGRESSIVE, SPECULATIVE):
        raise ValueError(f"{line!r} draws from the AR model as it is: leave out the temperature.")

    # A bool is an int for Python
    temperature = parameters[TEMPERATURE]
    is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not is_number or not 0 < temperature < math.inf:
        raise ValueError(f"{line!r} has temperature={temperature}, but it must be a positive number.")


def steps_of_line(line: str, numbers: str) -> tuple[int, ...]:
    """The values of T after the @ of a line."""
    try:
        return tuple(int(number) for number in numbers.split(","))
    except ValueError:
        raise ValueError(f"{line!r} must end with numbers of steps like @8,16, or without @.") from None


def depends_on_steps(name: str, parameters: dict) -> bool:
    """Whether the number of calls of a sampler depends on T."""
    import torch

    from edlm_hf.modeling.sampler_choice import make_sampler

    parameters = {key: value for key, value in parameters.items() if key != TEMPERATURE}

    # Eight masks of one row are more than either T, so that T decides wherever it can
    masked = torch.ones(1, 8, dtype=torch.bool, device="cpu")
    few = make_sampler(name, 2, parameters=parameters)
    more = make_sampler(name, 3, parameters=parameters)
    return few.steps_in(masked) != more.steps_in(masked)


# A first look
QUICK = {
    "samplers": ("ancestral", "first_hitting", "dilated", "spaced score=entropy"),
    "steps": (4, 8),
    "num_texts": 8,
    "noise_samples": 2,
    "num_generated": 8,
    "batch_size": 8,
}

__all__ = ["AUTOREGRESSIVE", "QUICK", "SAMPLERS", "SamplerArm", "SamplerSettings", "arms_of_line", "arms_of_lines"]
