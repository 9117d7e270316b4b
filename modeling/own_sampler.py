"""Samplers of the user: a function, or an object with at least `steps` and `reveal`.

Attributes that such an object lacks have the values of `Sampler`, or those that promise least. What
it returns is checked: a sampler that looks at no tokens reveals masks alone, and no mask is left at
the end.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .chain_state import State
from .planners import Planner
from .samplers import MASKS, PROPOSAL, TOKENS, Sampler, Step, rows_with
from .vocabulary import are_integers

SEES = (MASKS, PROPOSAL, TOKENS)


def is_sampler(sampler) -> bool:
    """Whether an object has the methods of a `Sampler`."""
    return all(callable(getattr(sampler, name, None)) for name in ("steps", "reveal"))


@dataclass(frozen=True)
class OwnFunction(Planner):
    """A function (step, proposal) -> (R, L) bool. The last of T steps reveals all that is left.

    Its attributes `sees` and `is_deterministic` count if it has them. Otherwise it sees the
    proposal and may be random.

    Raises:
        ValueError: it returns something else.
    """

    function: Callable
    num_steps: int = 128

    def __post_init__(self):
        check_sees(self.sees)

    @property
    def sees(self):
        return getattr(self.function, "sees", PROPOSAL)

    @property
    def is_deterministic(self):
        return bool(getattr(self.function, "is_deterministic", False))

    @property
    def revises(self):
        return self.sees == TOKENS

    def steps_in(self, free):
        return self.num_steps if bool(free.any()) else 0

    def reveal(self, step, proposal):
        revealed = allowed_set(self.function(step, proposal), proposal, self.sees)

        # The last step reveals all that is left
        is_last = step.index + 1 >= self.num_steps
        return revealed | proposal.free if is_last else revealed


@dataclass(frozen=True)
class OwnSampler(Sampler):
    """An object with `steps(state, noise)`, which yields `Step`s, and `reveal(step, proposal)`.

    Masks that are left after its last step are revealed in one more.

    Args:
        base: the object.
        num_steps: T, the number of steps that is shown unless `base` has `steps_in`.

    Raises:
        ValueError: more than T + L steps in a row change nothing, or a step has a wrong form.
    """

    base: Any
    num_steps: int = 128
    revises = True  # as far as anybody knows

    def __post_init__(self):
        check_sees(self.sees)

    @property
    def sees(self):
        return getattr(self.base, "sees", PROPOSAL)

    @property
    def has_clock(self):
        return bool(getattr(self.base, "has_clock", False))

    @property
    def is_deterministic(self):
        return bool(getattr(self.base, "is_deterministic", False))

    def steps_in(self, free):
        if hasattr(self.base, "steps_in"):
            return self.base.steps_in(free)
        return self.num_steps

    def looks_at(self, state, rows):
        if hasattr(self.base, "looks_at"):
            return self.base.looks_at(state, rows)
        return super().looks_at(state, rows)

    def jumps(self, free, uniforms, noise, schedule):
        if hasattr(self.base, "jumps"):
            return self.base.jumps(free, uniforms, noise, schedule)
        return super().jumps(free, uniforms, noise, schedule)

    def steps(self, state, noise):
        index = -1
        idle = 0
        steps = self.base.steps(state, noise)
        if not isinstance(steps, Iterable):
            raise ValueError(
                f"steps() of the sampler {self.base!r} returned a {type(steps).__name__}. Write it as a generator, "
                "which yields a Step for every step."
            )
        for number, step in enumerate(steps):
            step = self.checked(step, state)
            index = number if step.index is None else step.index
            before = state.ids.clone()
            yield step

            # A sampler that goes on for ever would hang
            idle = idle + 1 if torch.equal(state.ids, before) else 0
            self.check_idle(idle, state)

        # All masks that are left, in one more step
        masked = state.masked.cpu()
        if bool(masked.any()):
            total = state.free.sum(-1).cpu()
            t = state.time_of(masked.sum(-1), total)
            yield Step(t, reveal=masked, index=index + 1)

    def check_idle(self, idle: int, state: State) -> None:
        """Raise ValueError after more steps in a row without any change than T and all positions."""
        most = self.num_steps + state.ids.shape[1]
        if idle > most:
            raise ValueError(
                f"The sampler {self.base!r} yielded {idle} steps in a row that changed nothing, with "
                f"{int(state.masked.sum())} masks left. Let steps() end when no mask is left, reveal one in each "
                "step, or raise max_denoising_steps if so many idle steps are meant."
            )

    def checked(self, step: Step, state: State) -> Step:
        """The step without positions that it must not touch.

        Given tokens stay, and so do filled ones unless the sampler sees tokens.
        """
        check_step(step, len(state.ids))

        # S follows from the proposal
        if step.reveal is None:
            if self.sees == MASKS:
                raise ValueError(
                    f"The sampler {self.base!r} has sees = {MASKS!r}, but yields a step without "
                    "`reveal`, the positions (B, L) that it reveals. Give it sees = "
                    f"{PROPOSAL!r}: then its method `reveal` is called when the proposal is there."
                )
            return step

        # (B, L) each, on the CPU
        shape = state.ids.shape
        may_reveal = state.free if self.sees == TOKENS else state.masked
        reveal = check_bools("steps() yielded reveal =", step.reveal, shape).cpu()
        reveal = reveal & may_reveal.cpu()

        # The prompt never becomes masks
        mask_again = step.mask_again
        if mask_again is not None:
            mask_again = check_bools("steps() yielded mask_again =", mask_again, shape).cpu()
            mask_again = mask_again & state.free.cpu()
        return replace(step, reveal=reveal, mask_again=mask_again, rows=rows_with(reveal))

    def reveal(self, step, proposal):
        return allowed_set(self.base.reveal(step, proposal), proposal, self.sees)


def check_step(step: Step, num_rows: int) -> None:
    """Raise ValueError unless `step` is a Step whose times and rows are those of B = `num_rows` rows."""
    if not isinstance(step, Step):
        raise ValueError(
            f"steps() yielded {step!r}, but it must yield objects of the class Step of modeling/samplers.py."
        )

    is_times = torch.is_tensor(step.t) and step.t.shape == (num_rows,) and step.t.is_floating_point()
    if not is_times or not bool(((step.t >= 0) & (step.t <= 1)).all()):
        raise ValueError(
            f"steps() yielded t = {step.t!r}, but a tensor of {num_rows} times from 0 to 1 is needed, one for every "
            "row, such as state.time_of(left, total)."
        )

    rows = step.rows
    if rows is None:
        return
    is_rows = are_integers(rows) and rows.dim() == 1
    if not is_rows or not bool(((rows >= 0) & (rows < num_rows)).all()):
        raise ValueError(
            f"steps() yielded rows = {rows!r}, but numbers of rows, (R,) from 0 to {num_rows - 1}, are needed."
        )


def allowed_set(revealed, proposal, sees: str) -> torch.Tensor:
    """S (R, L) bool as a sampler returned it, without positions that it must not touch."""
    # Samplers that see tokens may replace those that are filled, too
    revealed = check_bools("sampler returned", revealed, proposal.ids.shape)
    may_reveal = proposal.at if sees == TOKENS else proposal.free
    return revealed.to(proposal.ids.device) & may_reveal


def check_bools(source: str, value, shape) -> torch.Tensor:
    """Give `value` back if it is a tensor of bools of a shape.

    Raises:
        ValueError: it is anything else. The message begins with `source`.
    """
    is_tensor = torch.is_tensor(value)
    if is_tensor and value.dtype == torch.bool and value.shape == shape:
        return value
    given = f"{value.dtype} {tuple(value.shape)}" if is_tensor else type(value).__name__
    raise ValueError(
        f"{source} {given}, but bools of shape {tuple(shape)} are needed, True where the step reveals a position."
    )


def check_sees(sees: str) -> None:
    """Raise ValueError unless `sees` is one of `SEES`."""
    if sees not in SEES:
        raise ValueError(f"The sampler has sees = {sees!r}, but it must be one of {', '.join(SEES)}.")
