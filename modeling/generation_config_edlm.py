"""The configuration that `generate()` takes, and the output that it returns."""

import copy
import math
import operator
from dataclasses import dataclass
from numbers import Real

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .sampler_choice import CORRECTOR, PARAMETERS, check_sampler, make_sampler, parameters_of
from .samplers import Sampler

# Fields of GenerationConfig that `generate()` takes. The others belong to left-to-right decoding.
SUPPORTED = {
    "max_length",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "guidance_scale",
    "num_return_sequences",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict_in_generate",
    "use_cache",
}

# Fields by the kind of their values. Integers have a least value, and all up to the largest one are
# exact in float64. Numbers have a condition and its text.
LEAST_INTEGERS = {
    "max_denoising_steps": 1,
    "num_candidates": 1,
    "block_length": 1,
    "energy_chunk_size": 1,
    "num_return_sequences": 1,
    "max_length": 1,
    "max_new_tokens": 0,
    "top_k": 0,
}
LARGEST_INTEGER = 2**53
NUMBERS = {
    "energy_temperature": (lambda x: x > 0, "positive"),
    "temperature": (lambda x: 0 < x < math.inf, "positive and finite"),
    "top_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "guidance_scale": (lambda x: 0 <= x < math.inf, "finite and at least 0"),
}
BOOLS = ("do_sample", "return_dict_in_generate", "output_history", "output_log_probs", "use_cache")
SCOPES = ("sequence", "revealed")


class EDLMGenerationConfig(GenerationConfig):
    """`GenerationConfig` with the parameters of masked diffusion.

    A setting that is not given has the default below. Only the given ones are stored, and
    override another configuration (but `do_sample`, which is stored as True if it is not given).

    Attributes:
        max_denoising_steps: T, steps of the reverse chain per block (128).
        sampler: which masks a step reveals: `ancestral` (T steps), `first_hitting` (one token per
            call, the limit of T -> infinity), a planner by name (see sampler_choice.py),
            `speculative` (exactly the AR energy model, which accepts or replaces drafts of the
            denoiser), or an object of your own: a `Sampler`, or a function (step, proposal) that
            returns bools of the shape of `proposal.ids`. Parameters of a sampler (`distance`,
            `score`, `gamma`, `threshold`, ...) are given beside it.
        corrector_sweeps: draw every position so often anew at the end (0).
        corrector_positions: so many at a time (1).
        guidance_scale: classifier-free guidance against the text with its prompt masked. 1 is none.
        num_candidates: k, proposals that the energy weighs (8). 1 switches the energy off.
        energy_window: w, the energy acts at steps that start at t in [1 - w, 1] (1.0), or a pair
            (t_low, t_high) of absolute times, both inclusive. 0 switches it off.
        energy_temperature: tau of the weights softmax(-E / tau) (1.0).
        energy_scope: `sequence` weighs complete sequences, `revealed` only what a step reveals (the
            model's scope).
        block_length: fill the text in blocks of this many tokens, left to right (None: all at
            once).
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
            value = kwargs.pop(name, None)
            if value is not None:
                setattr(self, name, value)

        # Diffusion samples by default
        if kwargs.get("do_sample") is None:
            kwargs["do_sample"] = True
        super().__init__(**kwargs)

    def __getattr__(self, name: str):
        """The default of a parameter that was not given."""
        if name in type(self).diffusion_defaults:
            return type(self).diffusion_defaults[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a text, none where `eos_token_id` is None."""
        if isinstance(self.eos_token_id, list):
            return self.eos_token_id
        return [] if self.eos_token_id is None else [self.eos_token_id]

    @property
    def is_guided(self) -> bool:
        """Whether every proposal takes a second call of the denoiser, for classifier-free guidance."""
        return self.guidance_scale not in (None, 1)

    def make_sampler(self) -> Sampler:
        """The sampler with the given parameters.

        Raises:
            ValueError: a parameter that it does not have, or a value out of range.
        """
        stored = vars(self)
        given = {name: stored[name] for name in PARAMETERS if stored.get(name) is not None}
        do_sample = self.do_sample is not False
        return make_sampler(self.sampler, self.max_denoising_steps, do_sample, given)

    def update(self, defaults_only: bool = False, **kwargs):
        """Set attributes by `GenerationConfig.update`, for which a default is not a given value."""
        others = {}
        for name, value in kwargs.items():
            if name in self.diffusion_defaults and name not in vars(self):
                setattr(self, name, value)
            else:
                others[name] = value
        return super().update(defaults_only, **others)

    def to_dict(self) -> dict:
        """The usual dictionary. A sampler that is an object is not copied into it."""
        if isinstance(self.sampler, str):
            return super().to_dict()
        without_sampler = copy.copy(self)
        del without_sampler.sampler
        output = super(EDLMGenerationConfig, without_sampler).to_dict()
        output["sampler"] = self.sampler
        return output

    def to_json_string(self, *args, **kwargs) -> str:
        """The usual text. JSON holds names alone, so a sampler that is an object is described."""
        described = copy.copy(self)
        if not isinstance(self.sampler, str):
            described.sampler = repr(self.sampler)
        return super(EDLMGenerationConfig, described).to_json_string(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        """Save by `GenerationConfig.save_pretrained`.

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
        """A configuration with the special tokens of a model.

        End-of-text stays off where it is the start token too, as in mdlm-owt.
        """
        # A dictionary holds the special tokens of models that are not of this package
        config = model_config if isinstance(model_config, dict) else model_config.to_dict()
        bos = config.get("bos_token_id")
        eos = config.get("eos_token_id")
        return cls(
            bos_token_id=bos,
            eos_token_id=None if eos == bos else eos,
            pad_token_id=config.get("pad_token_id"),
        )

    def validate(self, **kwargs):
        """Check the given values, and store integers, numbers, bools and ids as Python's own.

        Raises:
            ValueError: a value is of another kind, or out of range.
        """
        # 1. Values of one kind each
        for name, least in LEAST_INTEGERS.items():
            self._replace(name, whole_number_from(name, getattr(self, name), least))
        for name in NUMBERS:
            self._replace(name, number_from(name, getattr(self, name)))
        for name in BOOLS:
            self._replace(name, bool_from(name, getattr(self, name)))
        for name in ("eos_token_id", "pad_token_id"):
            several = name == "eos_token_id"
            self._replace(name, token_ids_from(name, getattr(self, name), several))

        # 2. Parameters of samplers and the window
        for name in sorted(PARAMETERS):
            self._replace(name, plain_number(getattr(self, name)))
        self._replace("energy_window", plain_number(self.energy_window))

        # 3. Choices, sampler and window
        scope = self.energy_scope
        if scope is not None and scope not in SCOPES:
            raise ValueError(f"energy_scope is {scope!r}, but it must be one of {', '.join(SCOPES)}.")
        check_sampler(self.sampler)
        self.check_own_parameters()
        if self.energy_window is not None:
            window_times(self.energy_window)

        # 4. transformers refuses max_new_tokens=0, with which only masks in the prompt are filled
        new_tokens = self.max_new_tokens
        self.max_new_tokens = new_tokens or None
        try:
            super().validate(**kwargs)
        finally:
            self.max_new_tokens = new_tokens

    def check_own_parameters(self) -> None:
        """Raise ValueError if a parameter of the sampler, as far as it has it, is out of range.

        Those of other samplers may be left from another setting.
        """
        if not isinstance(self.sampler, str):
            return
        given = vars(self)
        own = [*parameters_of(self.sampler), *CORRECTOR]
        values = {name: given[name] for name in own if given.get(name) is not None}
        make_sampler(self.sampler, self.max_denoising_steps or 1, parameters=values)

    def _replace(self, name: str, value) -> None:
        """Store `value` unless it is a default."""
        if name in vars(self):
            setattr(self, name, value)


def plain_number(value):
    """Numbers and bools of numpy and torch, and pairs of them, as Python's own. All else stays as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(plain_number(item) for item in value)
    is_foreign = hasattr(value, "item") and hasattr(value, "dtype")
    if is_foreign and math.prod(value.shape) == 1 and str(getattr(value, "device", "")) != "meta":
        return value.item()
    return value


def whole_number_from(name: str, value, least: int) -> int | None:
    """An integer of at least `least`. None stays None.

    Raises:
        ValueError: it is anything else.
    """
    return None if value is None else given_whole_number(name, value, least)


def given_whole_number(name: str, value, least: int) -> int:
    """An integer of at least `least`.

    Raises:
        ValueError: it is anything else, None included.
    """
    number = whole_number(value)
    if number is not None and least <= number <= LARGEST_INTEGER:
        return number

    allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if number is not None and number > LARGEST_INTEGER:
        allowed += f" and at most {LARGEST_INTEGER}"
    raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")


def number_from(name: str, value) -> float | None:
    """One of `NUMBERS` as a float. None stays None.

    Raises:
        ValueError: it is not a number, or out of range.
    """
    if value is None:
        return None
    is_allowed, allowed = NUMBERS[name]
    is_number = isinstance(value, Real) or (torch.is_tensor(value) and value.numel() == 1)
    try:
        number = float(value) if is_number else None
    except OverflowError:  # an integer beyond all floats
        number = None
    if number is not None and is_allowed(number):
        return number

    advice = "" if name == "guidance_scale" else " For the likeliest tokens: do_sample=False."
    raise ValueError(f"{name} is {value!r}, but it must be a number, {allowed}.{advice}")


def bool_from(name: str, value) -> bool | None:
    """True or False for a bool of Python, numpy or torch, or for 0 or 1. None stays None.

    Raises:
        ValueError: it is anything else, such as a string.
    """
    if value is None or isinstance(value, bool):
        return value

    # Arrays of numpy and tensors, unless they hold several values or none that can be read
    number = value
    if hasattr(value, "item"):
        try:
            number = value.item()
        except (ValueError, RuntimeError):
            number = None
    if isinstance(number, int) and number in (0, 1):
        return bool(number)
    raise ValueError(f"{name} is {value!r}, but it must be True or False.")


def token_ids_from(name: str, value, several: bool) -> int | list[int] | None:
    """A token id, or a list of them where `several` are allowed. None stays None.

    Raises:
        ValueError: it is anything else.
    """
    if value is None:
        return None

    # Arrays of numpy and tensors as numbers and lists
    given = value.tolist() if hasattr(value, "tolist") else value
    is_list = several and isinstance(given, (list, tuple))
    ids = [whole_number(x) for x in (given if is_list else [given])]
    if ids and None not in ids:
        return ids if is_list else ids[0]

    allowed = "a token id"
    if several:
        allowed += " or a list of them, or None to switch the end of the text off"
    raise ValueError(f"{name} is {value!r}, but it must be {allowed}.")


def whole_number(value) -> int | None:
    """An integer of Python, numpy or torch as Python's own, None for anything else."""
    # numpy before 2.3 would still take its truth values for indices
    if isinstance(value, bool) or str(getattr(value, "dtype", None)) in ("bool", "torch.bool"):
        return None

    # RuntimeError: a tensor on the device `meta`
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        return None


def window_times(window: float | tuple[float, float]) -> tuple[float, float]:
    """The times (low, high) between which the energy acts. (1, 0), which is never, for w = 0.

    Raises:
        ValueError: w is outside [0, 1], or the pair is not 0 <= low <= high <= 1.
    """
    # A pair of times
    if isinstance(window, (tuple, list)):
        are_numbers = len(window) == 2 and all(isinstance(time, Real) for time in window)
        if not are_numbers or not 0 <= window[0] <= window[1] <= 1:
            raise ValueError(f"energy_window is {window!r}, but a pair must have 0 <= t_low <= t_high <= 1.")
        low, high = window
        return float(low), float(high)

    # The share w of the time, from t = 1 on
    if not isinstance(window, Real) or not 0 <= window <= 1:
        raise ValueError(f"energy_window is {window!r}, but w must lie in [0, 1] (or be a pair of times).")
    if window > 0:
        return 1 - float(window), 1.0
    return 1.0, 0.0


@dataclass
class EDLMGenerationOutput(ModelOutput):
    """The output of `generate(return_dict_in_generate=True)`.

    Args:
        sequences: (B, length) token ids, prompt included.
        energies: (steps, B, k) energies of all candidates. NaN where none was needed, None if none
            ever was.
        effective_sample_size: (steps, B) 1 / sum of squared weights. NaN and None as above.
        num_denoiser_calls: (B,) calls of the denoiser that a row took part in.
        num_energy_calls: (B,) steps at which the energy weighed the candidates of a row, or the AR
            model judged its drafts.
        tokens_per_forward: (B,) generated tokens per call of the denoiser.
        history: sequences before the first step and after every step, each (B, length), with
            `output_history=True`.
        chosen: (steps, B) index of the candidate that was taken. -1 where none was weighed, None if
            none ever was.
        log_probs: (B, length) log p_theta of every generated token as it was drawn, NaN elsewhere,
            with `output_log_probs=True`. With sampler="speculative" it is log p_AR.
        num_drafts: (B,) tokens that the denoiser drafted, with sampler="speculative".
        num_accepted_drafts: (B,) those of them that the AR model accepted.
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
    num_drafts: torch.LongTensor | None = None
    num_accepted_drafts: torch.LongTensor | None = None
