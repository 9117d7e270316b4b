"""What `generate()` takes and gives: its configuration and its output."""

import copy
import math
import operator
from dataclasses import dataclass
from numbers import Real

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .sampler_choice import PARAMETERS, check_sampler, make_sampler
from .samplers import Sampler

SCOPES = ("sequence", "revealed")
# The fields of GenerationConfig that `generate()` takes. The others belong to left-to-right decoding.
SUPPORTED = {"max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_return_sequences"}
SUPPORTED |= {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict_in_generate",
    "use_cache",
    "min_p",
    "guidance_scale",
}
# Integers and the least value of each. All are exact in float64.
LEAST = dict.fromkeys(("max_denoising_steps", "num_candidates", "block_length", "energy_chunk_size"), 1)
LEAST |= {"num_return_sequences": 1, "max_length": 1, "max_new_tokens": 0, "top_k": 0}
MOST = 2**53
NUMBERS = {
    "energy_temperature": (lambda x: x > 0, "positive"),
    "temperature": (lambda x: 0 < x < math.inf, "positive and finite"),
    "top_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "guidance_scale": (lambda x: 0 <= x < math.inf, "finite and at least 0"),
}
CHOICES = {"energy_scope": SCOPES}
SWITCHES = ("do_sample", "return_dict_in_generate", "output_history", "output_log_probs", "use_cache")


class EDLMGenerationConfig(GenerationConfig):
    """`GenerationConfig` with the parameters of masked diffusion.

    What is not given has the default below. Only what is given is stored, and overrides another configuration (but
    `do_sample`, which is stored as True then).

    Args:
        max_denoising_steps: T, steps of the reverse chain per block (128).
        sampler: which masks a step reveals: `ancestral` (T steps), `first_hitting` (one token per call, the law of
            T -> infinity), a planner by name (see sampler_choice.py), or an object of your own: a `Sampler`, or a
            function (step, proposal) that returns bools of the shape of `proposal.ids`. Parameters of a sampler
            (`distance`, `score`, `gamma`, `threshold`, ...) are given beside it.
        corrector_sweeps, corrector_positions: draw every position so often anew at the end, so many at a time (0, 1).
        guidance_scale: classifier-free guidance against the text with its prompt masked; 1 is none.
        num_candidates: k, proposals that the energy weighs (8). 1 switches the energy off.
        energy_window: w, the energy acts at steps that start at t in [1 - w, 1] (1.0), or a pair (t_low, t_high) of
            absolute times, both inclusive. 0 switches it off.
        energy_temperature: tau of the weights softmax(-E / tau) (1.0).
        energy_scope: `sequence` weighs complete sequences, `revealed` only what a step reveals (the model's scope).
        block_length: fill the text in blocks of this many tokens, left to right (None: all at once).
        energy_chunk_size: candidates per call of the energy network (None: bounded by memory).
        output_history: keep the sequences after every step.
        output_log_probs: keep log p_theta of every token as it was drawn.

    Raises:
        ValueError: a value is out of range.
    """

    diffusion_defaults = {
        "max_denoising_steps": 128,
        "sampler": "ancestral",
        "num_candidates": 8,
        "energy_window": 1.0,
        "energy_temperature": 1.0,
        "energy_scope": None,
        "block_length": None,
        "energy_chunk_size": None,
        "output_history": False,
        "output_log_probs": False,
        **dict.fromkeys(sorted(PARAMETERS)),
    }

    def __init__(self, **kwargs):
        for name in self.diffusion_defaults:
            if (value := kwargs.pop(name, None)) is not None:
                setattr(self, name, value)
        if kwargs.get("do_sample") is None:
            kwargs["do_sample"] = True  # diffusion samples unless told otherwise
        super().__init__(**kwargs)

    def __getattr__(self, name: str):
        """The default of what was not given."""
        if name in type(self).diffusion_defaults:
            return type(self).diffusion_defaults[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a text, none where `eos_token_id` is None."""
        if isinstance(self.eos_token_id, list):
            return self.eos_token_id
        return [] if self.eos_token_id is None else [self.eos_token_id]

    def make_sampler(self) -> Sampler:
        """The sampler that is asked for.

        Raises:
            ValueError: a parameter that it does not have, or a value out of range.
        """
        given = {name: vars(self)[name] for name in PARAMETERS if vars(self).get(name) is not None}
        return make_sampler(self.sampler, self.max_denoising_steps, self.do_sample is not False, given)

    def update(self, defaults_only: bool = False, **kwargs):
        """As usual, but a default of ours does not count as a value that was given."""
        mine = {name: x for name, x in kwargs.items() if name in self.diffusion_defaults and name not in vars(self)}
        for name, value in mine.items():
            setattr(self, name, value)
        return super().update(defaults_only, **{name: x for name, x in kwargs.items() if name not in mine})

    def to_dict(self) -> dict:
        """As usual; a sampler that is an object is not copied."""
        if isinstance(self.sampler, str):
            return super().to_dict()
        others = copy.copy(self)
        del others.sampler
        return super(EDLMGenerationConfig, others).to_dict() | {"sampler": self.sampler}

    def to_json_string(self, *args, **kwargs) -> str:
        """As usual; a sampler that is an object stands as its text, since JSON holds names alone."""
        shown = copy.copy(self)
        if not isinstance(self.sampler, str):
            shown.sampler = repr(self.sampler)
        return super(EDLMGenerationConfig, shown).to_json_string(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        """As usual.

        Raises:
            ValueError: the sampler is an object, which a file cannot hold.
        """
        if not isinstance(self.sampler, str):
            raise ValueError(
                f"sampler is {self.sampler!r}, an object, which cannot be saved in generation_config.json. Set the "
                "name of a sampler and its parameters, and pass the object to generate() with every call."
            )
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "EDLMGenerationConfig":
        """Special tokens of the model. End-of-text stays off where it is the start token too (as in mdlm-owt)."""
        config = model_config if isinstance(model_config, dict) else model_config.to_dict()
        bos, eos, pad = (config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
        return cls(bos_token_id=bos, eos_token_id=None if eos == bos else eos, pad_token_id=pad)

    def validate(self, **kwargs):
        """Check what was given, and store integers, numbers, bools and ids as those of Python."""
        for name in LEAST:
            self._replace(name, whole_number_from(name, getattr(self, name), LEAST[name]))
        for name in NUMBERS:
            self._replace(name, number_from(name, getattr(self, name)))
        for name in SWITCHES:
            self._replace(name, bool_from(name, getattr(self, name)))
        for name in ("eos_token_id", "pad_token_id"):
            self._replace(name, token_ids_from(name, getattr(self, name), several=name == "eos_token_id"))
        for name, allowed in CHOICES.items():
            if getattr(self, name) is not None and getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(allowed)}.")
        check_sampler(self.sampler)
        if self.energy_window is not None:
            window_times(self.energy_window)
        self._validate_as_usual(**kwargs)

    def _replace(self, name: str, value) -> None:
        """Store `value` unless it is a default."""
        if name in vars(self):
            setattr(self, name, value)

    def _validate_as_usual(self, **kwargs) -> None:
        """The checks of transformers, which knows no `max_new_tokens=0`: only masks in the prompt are filled then."""
        new_tokens = self.max_new_tokens
        self.max_new_tokens = new_tokens or None
        try:
            super().validate(**kwargs)
        finally:
            self.max_new_tokens = new_tokens


def whole_number_from(name: str, value, least: int) -> int | None:
    """An integer from `least` on, or None if it is None.

    Raises:
        ValueError: it is anything else.
    """
    if value is None:
        return None
    number = whole_number(value)
    if number is None or not least <= number <= MOST:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        allowed += f" and at most {MOST}" if number is not None and number > MOST else ""
        raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")
    return number


def number_from(name: str, value) -> float | None:
    """One of `NUMBERS`, or None if it is None.

    Raises:
        ValueError: it is no number or out of range.
    """
    if value is None:
        return None
    fits, allowed = NUMBERS[name]
    is_number = isinstance(value, Real) or isinstance(value, torch.Tensor) and value.numel() == 1
    if not is_number or not fits(float(value)):
        advice = "" if name == "guidance_scale" else " For the likeliest tokens: do_sample=False."
        raise ValueError(f"{name} is {value!r}, but it must be a number, {allowed}.{advice}")
    return float(value)


def bool_from(name: str, value) -> bool | None:
    """True or False for a bool of Python, numpy or torch, or for 0 or 1. None stays None.

    Raises:
        ValueError: it is anything else, such as a string.
    """
    if value is None or isinstance(value, bool):
        return value
    try:
        found = value.item() if hasattr(value, "item") else value  # of numpy and torch
    except (ValueError, RuntimeError):  # more than one
        found = None
    if not isinstance(found, int) or found not in (0, 1):
        raise ValueError(f"{name} is {value!r}, but it must be True or False.")
    return bool(found)


def token_ids_from(name: str, value, several: bool) -> int | list[int] | None:
    """A token id, or a list of them where `several` are allowed. None stays None.

    Raises:
        ValueError: it is anything else.
    """
    if value is None:
        return None
    found = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
    is_list = several and isinstance(found, (list, tuple))
    ids = [whole_number(x) for x in found] if is_list else [whole_number(found)]
    if not ids or None in ids:
        none = ", or None to switch the end of the text off" if several else ""
        raise ValueError(f"{name} is {value!r}, but it must be a token id{' or a list of them' * several}{none}.")
    return ids if is_list else ids[0]


def whole_number(value) -> int | None:
    """An integer of Python, numpy or torch as one of Python, None for anything else."""
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    try:
        return None if is_bool else operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: on the device `meta`
        return None


def window_times(window: float | tuple[float, float]) -> tuple[float, float]:
    """The times (low, high) between which the energy acts. (1, 0), which is never, for w = 0.

    Raises:
        ValueError: w is outside [0, 1], or the pair is not 0 <= low <= high <= 1.
    """
    if isinstance(window, (tuple, list)):
        numbers = len(window) == 2 and all(isinstance(time, Real) for time in window)
        if not numbers or not 0 <= window[0] <= window[1] <= 1:
            raise ValueError(f"energy_window is {window!r}, but a pair must have 0 <= t_low <= t_high <= 1.")
        return float(window[0]), float(window[1])
    if not isinstance(window, Real) or not 0 <= window <= 1:
        raise ValueError(f"energy_window is {window!r}, but w must lie in [0, 1] (or be a pair of times).")
    return (1 - float(window), 1.0) if window > 0 else (1.0, 0.0)


@dataclass
class EDLMGenerationOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Args:
        sequences: (B, length) token ids, prompt included.
        energies: (steps, B, k) energies of all candidates. NaN where none was needed, None if none ever was.
        effective_sample_size: (steps, B) 1 / sum of squared weights. NaN and None as above.
        num_denoiser_calls: (B,) calls of the denoiser that a row took part in.
        num_energy_calls: (B,) steps at which the energy weighed the candidates of a row.
        tokens_per_forward: (B,) generated tokens per call of the denoiser.
        history: sequences before the first step and after every step, each (B, length), with `output_history=True`.
        chosen: (steps, B) index of the candidate that was taken. -1 where none was weighed, None if none ever was.
        log_probs: (B, length) log p_theta of every generated token as it was drawn, NaN elsewhere, with
            `output_log_probs=True`.
    """

    sequences: torch.LongTensor | None = None
    energies: torch.Tensor | None = None
    effective_sample_size: torch.Tensor | None = None
    num_denoiser_calls: torch.LongTensor | None = None
    num_energy_calls: torch.LongTensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    history: tuple[torch.LongTensor, ...] | None = None
    chosen: torch.LongTensor | None = None
    log_probs: torch.Tensor | None = None


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "window_times"]
