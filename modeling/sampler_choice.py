"""Samplers by name, with their parameters, or as an object of the user."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from .planners import (
    Dilated,
    EntropyBound,
    Factor,
    Klass,
    LowConfidence,
    MostConfident,
    Planner,
    Spaced,
    Threshold,
    TopK,
)
from .remasking import Edit, Gibbs, ReMDM
from .samplers import Ancestral, FirstHitting, Sampler

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": Ancestral,
    "first_hitting": FirstHitting,
    "dilated": Dilated,
    "spaced": Spaced,
    "top_k": TopK,
    "entropy_bound": EntropyBound,
    "threshold": Threshold,
    "factor": Factor,
    "klass": Klass,
    "remdm": ReMDM,
    "low_confidence": LowConfidence,
    "edit": Edit,
}

# What a corrector takes, whatever sampler it follows, and its types
CORRECTOR = {"corrector_sweeps": float, "corrector_positions": int}
# Fields of the classes that are no parameters of a call
INTERNAL = {"num_steps", "importance"}


def parameters_of(name: str) -> set[str]:
    """The parameters of the sampler `name` besides the number of steps."""
    return {field.name for field in dataclasses.fields(SAMPLERS[name])} - INTERNAL


PARAMETERS = set(CORRECTOR).union(*(parameters_of(name) for name in SAMPLERS))


def check_sampler(sampler) -> None:
    """Raise ValueError unless `sampler` is a name, a `Sampler`, or a function (step, proposal) -> bool (R, L)."""
    if isinstance(sampler, str) and sampler in SAMPLERS:
        return
    if isinstance(sampler, str) or isinstance(sampler, type) or not (is_sampler(sampler) or callable(sampler)):
        raise ValueError(
            f"sampler is {sampler!r}, but it must be one of {', '.join(SAMPLERS)}, or an object of your own: "
            "a Sampler, or a function (step, proposal) that returns bools of the shape of proposal.ids."
        )


def is_sampler(sampler) -> bool:
    """Whether an object has the methods of a `Sampler`."""
    return all(callable(getattr(sampler, name, None)) for name in ("steps", "reveal"))


def make_sampler(sampler, num_steps: int, do_sample: bool = True, parameters: dict | None = None) -> Sampler:
    """The sampler with a name and its `parameters`, or the one that the user made.

    Args:
        num_steps: T, for samplers that take so many steps.
        do_sample: without it `ancestral` and `first_hitting` reveal the surest masks in place of random ones.

    Raises:
        ValueError: an unknown name, a parameter that the sampler does not have, or a value out of range.
    """
    check_sampler(sampler)
    parameters = dict(parameters or {})
    correction = {}
    for name, kind in CORRECTOR.items():
        if name in parameters:
            check_type(name, parameters[name], kind)
            correction[name.removeprefix("corrector_")] = parameters.pop(name)

    is_own = is_sampler(sampler) or callable(sampler)
    if is_own and parameters:
        raise ValueError(f"There is no use for {', '.join(sorted(parameters))}: the sampler is an object of your own.")
    if is_sampler(sampler):
        made = sampler
    elif callable(sampler):
        made = OwnSampler(sampler, num_steps)
    elif not do_sample and sampler in ("ancestral", "first_hitting"):
        made = MostConfident(num_steps if sampler == "ancestral" else None)
    else:
        allowed = parameters_of(sampler)
        check_parameters(sampler, parameters, allowed)
        if takes_steps(SAMPLERS[sampler]):
            parameters["num_steps"] = num_steps
        made = SAMPLERS[sampler](**parameters)
    if correction and correction.get("sweeps") != 0:
        made = Gibbs(made, **correction)
    return made


def takes_steps(sampler: type[Sampler]) -> bool:
    """Whether T is a parameter of a sampler."""
    return "num_steps" in {field.name for field in dataclasses.fields(sampler)}


def check_parameters(sampler: str, parameters: dict, allowed: set[str]) -> None:
    """Raise ValueError unless all parameters are of the sampler and of the right type."""
    if unknown := sorted(set(parameters) - allowed):
        known = f"takes {', '.join(sorted(allowed))}" if allowed else "has no parameters"
        raise ValueError(f"The sampler {sampler!r} has no {', '.join(unknown)}: it {known}.")
    kinds = {field.name: field.type for field in dataclasses.fields(SAMPLERS[sampler])}
    for name, value in parameters.items():
        check_type(name, value, kinds[name])


# Kind of a parameter -> the types that it may have, in words
ALLOWED = {
    int: (Integral, "a whole number"),
    int | None: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a name"),
    bool: (bool, "True or False"),
    tuple[float, float]: ((tuple, list), "a pair of times"),
}


def check_type(name: str, value, kind) -> None:
    """Raise ValueError unless a parameter has its type."""
    types, allowed = ALLOWED[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")


@dataclass(frozen=True)
class OwnSampler(Planner):
    """A function (step, proposal) -> (R, L) bool of the user. The last of T steps reveals what is left.

    It may draw random numbers, so that its likelihood is measured as often as that of a random sampler.

    Raises:
        ValueError: it returns something else.
    """

    function: Callable
    num_steps: int = 128
    is_deterministic = False

    def steps_in(self, free):
        return self.num_steps  # some of which may reveal nothing

    def reveal(self, step, proposal):
        revealed = self.function(step, proposal)
        is_tensor = torch.is_tensor(revealed)
        if not is_tensor or revealed.dtype != torch.bool or revealed.shape != proposal.ids.shape:
            given = f"{revealed.dtype} {tuple(revealed.shape)}" if is_tensor else type(revealed).__name__
            raise ValueError(
                f"sampler returned {given}, but bools of shape {tuple(proposal.ids.shape)} are needed, True where the "
                "step reveals a position."
            )
        last = step.index + 1 >= self.num_steps
        return proposal.free & (revealed.to(proposal.ids.device) | last)
