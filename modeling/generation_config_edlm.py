"""What `generate()` takes and gives: its configuration and its output."""

import math
import operator
from dataclasses import dataclass
from numbers import Real

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

SAMPLERS = ("ancestral", "first_hitting")
SCOPES = ("sequence", "revealed")
# The fields of GenerationConfig that `generate()` takes; the others belong to left-to-right decoding.
SUPPORTED = {"max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_return_sequences"}
SUPPORTED |= {"bos_token_id", "eos_token_id", "pad_token_id", "return_dict_in_generate", "use_cache"}
# Integers and the least value of each
LEAST = dict.fromkeys(("max_denoising_steps", "num_candidates", "block_length", "energy_chunk_size"), 1)
LEAST |= {"num_return_sequences": 1, "max_length": 1, "max_new_tokens": 0, "top_k": 0}


class EDLMGenerationConfig(GenerationConfig):
    """`GenerationConfig` with the parameters of masked diffusion.

    What is not given has the default below; only what is given is stored, and overrides another configuration (but
    `do_sample`, which is stored as True then).

    Args:
        max_denoising_steps: T, steps of the reverse chain per block (128).
        sampler: `ancestral` (T steps) or `first_hitting` (one token per call, the law of T -> infinity).
        num_candidates: k, proposals that the energy weighs (8); 1 switches the energy off.
        energy_window: w, the energy acts at steps that start at t in [1 - w, 1] (1.0); or a pair (t_low, t_high) of
            absolute times, both inclusive; 0 switches it off.
        energy_temperature: tau of the weights softmax(-E / tau) (1.0).
        energy_scope: `sequence` weighs complete sequences, `revealed` only what a step reveals (the model's scope).
        block_length: fill the text in blocks of this many tokens, left to right (None: all at once).
        energy_chunk_size: candidates per call of the energy network (None: bounded by memory).
        output_history: keep the sequences after every step.

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

    def update(self, defaults_only: bool = False, **kwargs):
        """As usual; a default of ours is no value that was given."""
        mine = {name: x for name, x in kwargs.items() if name in self.diffusion_defaults and name not in vars(self)}
        for name, value in mine.items():
            setattr(self, name, value)
        return super().update(defaults_only, **{name: x for name, x in kwargs.items() if name not in mine})

    @classmethod
    def from_model_config(cls, model_config) -> "EDLMGenerationConfig":
        """Special tokens of the model; end-of-text stays off where it is the start token too (as in mdlm-owt)."""
        config = model_config if isinstance(model_config, dict) else model_config.to_dict()
        bos, eos, pad = (config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
        return cls(bos_token_id=bos, eos_token_id=None if eos == bos else eos, pad_token_id=pad)

    def validate(self, **kwargs):
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is None:
                continue
            number = whole_number(value)
            if number is None or number < least:
                allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
                raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")
            if name in vars(self):
                setattr(self, name, number)
        for name, allowed in (("sampler", SAMPLERS), ("energy_scope", SCOPES)):
            if getattr(self, name) is not None and getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(allowed)}.")
        for name, fits, allowed in (
            ("energy_temperature", lambda x: x > 0, "positive"),
            ("temperature", lambda x: 0 < x < math.inf, "positive and finite"),
            ("top_p", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ):
            if (value := getattr(self, name)) is None:
                continue
            if not (isinstance(value, Real) or torch.is_tensor(value) and value.numel() == 1) or not fits(float(value)):
                raise ValueError(
                    f"{name} is {value!r}, but it must be a number, {allowed}. For the likeliest tokens: "
                    "do_sample=False."
                )
            if name in vars(self):
                setattr(self, name, float(value))
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            value = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
            several = name == "eos_token_id" and isinstance(value, (list, tuple))
            if value is not None and not all(isinstance(x, int) for x in (value if several else [value])):
                raise ValueError(f"{name} is {value!r}, but it must be a token id{' or a list of them' * several}.")
            setattr(self, name, list(value) if several else value)
        if self.energy_window is not None:
            window_times(self.energy_window)
        super().validate(**kwargs)


def whole_number(value) -> int | None:
    """An integer of Python, numpy or torch as one of Python; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def window_times(window: float | tuple[float, float]) -> tuple[float, float]:
    """The times (low, high) between which the energy acts; (1, 0), never, for w = 0.

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
        energies: (steps, B, k) energies of all candidates; NaN where none was needed, None if none ever was.
        effective_sample_size: (steps, B) 1 / sum of squared weights; NaN and None as above.
        num_denoiser_calls: (B,) calls of the denoiser that a row took part in.
        num_energy_calls: (B,) steps at which the energy weighed the candidates of a row.
        tokens_per_forward: (B,) generated tokens per call of the denoiser.
        history: sequences before the first step and after every step, each (B, length), with `output_history=True`.
        chosen: (steps, B) index of the candidate that was taken; -1 where none was weighed, None if none ever was.
    """

    sequences: torch.LongTensor | None = None
    energies: torch.Tensor | None = None
    effective_sample_size: torch.Tensor | None = None
    num_denoiser_calls: torch.LongTensor | None = None
    num_energy_calls: torch.LongTensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    history: tuple[torch.LongTensor, ...] | None = None
    chosen: torch.LongTensor | None = None


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "window_times"]
