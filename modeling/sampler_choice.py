"""Samplers by name, with their parameters, or as an object of the user (own_sampler.py)."""

import dataclasses
from numbers import Integral, Real

from .drafting import Speculative
from .own_sampler import OwnFunction, OwnSampler, is_sampler
from .planners import EntropyBound, Factor, Klass, LowConfidence, MostConfident, Threshold, TopK
from .remasking import Edit, Gibbs, ReMDM
from .samplers import Ancestral, FirstHitting, Sampler
from .spacing import Dilated, Spaced

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
    "speculative": Speculative,
}

# Parameters of the corrector, whatever sampler it follows
CORRECTOR = ("corrector_sweeps", "corrector_positions")
# Fields of the classes that are no parameters of a call
INTERNAL = {"num_steps", "importance"}


def parameters_of(name: str) -> set[str]:
    """The parameters of the sampler `name` besides the number of steps."""
    return {field.name for field in dataclasses.fields(SAMPLERS[name])} - INTERNAL


PARAMETERS = set(CORRECTOR).union(*(parameters_of(name) for name in SAMPLERS))


def make_sampler(
    sampler,
    num_steps: int,
    do_sample: bool = True,
    parameters: dict | None = None,
) -> Sampler:
    """The sampler with a name and its `parameters`, or the one that the user made.

    Args:
        sampler: a name in `SAMPLERS`, a `Sampler`, an object like one, or a function.
        num_steps: T, for samplers that have such a parameter.
        do_sample: without it `ancestral` and `first_hitting` reveal the surest masks in place of
            random ones.
        parameters: of the sampler and of the corrector, by name.

    Raises:
        ValueError: an unknown name, a parameter that the sampler does not have, or a value out of
            range.
    """
    # 1. What is given, checked
    check_sampler(sampler)
    given = parameters or {}
    of_corrector = {name: value for name, value in given.items() if name in CORRECTOR}
    of_sampler = {name: value for name, value in given.items() if name not in CORRECTOR}
    check_parameters(sampler, of_sampler)

    # 2. The sampler: one of ours by name or as an object, or an object or a function of the user
    if isinstance(sampler, str):
        made = sampler_by_name(sampler, num_steps, do_sample, of_sampler)
    elif type(sampler) in SAMPLERS.values():
        made = sampler
    elif is_sampler(sampler):
        made = OwnSampler(sampler, num_steps)
    else:
        made = OwnFunction(sampler, num_steps)
    return with_corrector(made, **of_corrector)


def sampler_by_name(name: str, num_steps: int, do_sample: bool, parameters: dict) -> Sampler:
    """One of `SAMPLERS`, or the one that takes its place where nothing is drawn."""
    # The surest masks in place of random ones
    if not do_sample and name == "ancestral":
        return MostConfident(num_steps)
    if not do_sample and name == "first_hitting":
        return MostConfident(None)

    # Nothing is drawn, and the offset neither
    if not do_sample and name == "dilated":
        parameters = {"offset": 0, **parameters}

    # T, for those that have a number of steps
    sampler_class = SAMPLERS[name]
    fields = {field.name for field in dataclasses.fields(sampler_class)}
    if "num_steps" in fields:
        return sampler_class(num_steps=num_steps, **parameters)
    return sampler_class(**parameters)


def with_corrector(
    sampler: Sampler,
    corrector_sweeps: float = 0.0,
    corrector_positions: int = 1,
) -> Sampler:
    """The sampler, followed by a corrector if there are any sweeps."""
    check_type("corrector_sweeps", corrector_sweeps, float)
    check_type("corrector_positions", corrector_positions, int)
    # Made in any case, which checks the ranges
    corrected = Gibbs(sampler, corrector_sweeps, corrector_positions)
    if corrector_sweeps > 0 and isinstance(sampler, Speculative):
        raise ValueError(
            f"corrector_sweeps is {corrector_sweeps}, but sampler='speculative' draws from its autoregressive model "
            "exactly, and a corrector would replace its tokens by those of the denoiser. Leave it out."
        )
    return corrected if corrector_sweeps > 0 else sampler


def check_sampler(sampler) -> None:
    """Raise ValueError unless `sampler` is a name, a `Sampler`, or a function (step, proposal)."""
    is_name = isinstance(sampler, str)
    if is_name and sampler in SAMPLERS:
        return
    if is_name or isinstance(sampler, type) or not (is_sampler(sampler) or callable(sampler)):
        raise ValueError(
            f"sampler is {sampler!r}, but it must be one of {', '.join(SAMPLERS)}, or an object of "
            "your own: a Sampler, or a function (step, proposal) that returns bools of the shape "
            "of proposal.ids."
        )


def check_parameters(sampler, parameters: dict) -> None:
    """Raise ValueError unless all parameters are of the sampler and of the right type."""
    # An object has its parameters already
    if not isinstance(sampler, str):
        if parameters:
            raise ValueError(
                f"There is no use for {', '.join(sorted(parameters))}: sampler is an object, "
                f"{sampler!r}. Give it its parameters when it is made."
            )
        return

    allowed = parameters_of(sampler)
    unknown = sorted(set(parameters) - allowed)
    if unknown:
        known = f"takes {', '.join(sorted(allowed))}" if allowed else "has no parameters"
        raise ValueError(f"The sampler {sampler!r} has no {', '.join(unknown)}: it {known}.")

    # The types of the fields of its class
    fields = dataclasses.fields(SAMPLERS[sampler])
    kinds = {field.name: field.type for field in fields}
    for name, value in parameters.items():
        check_type(name, value, kinds[name])


# Kind of a parameter -> the types that it may have, and their name in messages
ALLOWED = {
    int: (Integral, "a whole number"),
    int | None: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a name"),
    bool: (bool, "True or False"),
    tuple[float, float] | None: ((tuple, list), "a pair of times"),
}


def check_type(name: str, value, kind) -> None:
    """Raise ValueError unless the value of a parameter is of the `kind` of its field."""
    # True is an instance of int, but not a whole number
    types, allowed = ALLOWED[kind]
    fits = isinstance(value, types)
    if isinstance(value, bool):
        fits = kind is bool

    if fits and isinstance(value, (tuple, list)):
        fits = len(value) == 2 and all(isinstance(time, Real) for time in value)
    if not fits:
        raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")
