"""Checks of settings, and the settings that the studies of quality and of samplers share."""

from dataclasses import dataclass

import torch

from edlm_hf.benchmarks.text_sets import named_source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_positive(settings, names: tuple[str, ...]) -> None:
    """Raise ValueError unless these settings, numbers or tuples of numbers, are 1 or more."""
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if min(numbers) < 1:
            raise ValueError(f"{name} is {value}, but it must be positive.")


def check_distinct(settings, names: tuple[str, ...]) -> None:
    """Raise ValueError unless these settings are tuples of at least one value, each value once."""
    for name in names:
        values = getattr(settings, name)
        if not values:
            raise ValueError(f"{name} is empty. Give at least one value.")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}, but a value may stand there only once.")


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless the benchmarks know this precision."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but it must be one of {', '.join(DTYPES)}.")


def check_device(device: str) -> None:
    """Raise ValueError unless torch knows this device."""
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, but it must be one like cpu, cuda or cuda:1.") from None


@dataclass(frozen=True)
class NetworkSettings:
    """The networks and texts of a study.

    Args:
        model: folder or Hub repository of the denoiser and its tokenizer, or of an EDLM composite.
        data: the sets of texts, each a protocol (`edlm_hf.data.PROTOCOLS`), a Hub dataset or files,
            or `name=source`. A set named after a protocol is cleaned like it
            (`wikitext2=test.parquet`). The split is the evaluation split of a protocol, otherwise
            "test".
        autoregressive: the AR model.
        batch_size: rows per call of a network.
        dtype: float32 or bfloat16.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    model: str
    data: tuple[str, ...]
    autoregressive: str | None = None
    batch_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self):
        check_distinct(self, ("data",))
        check_positive(self, ("batch_size",))
        check_dtype(self.dtype)
        check_device(self.device)

        names = [named_source(text)[0] for text in self.data]
        if len(set(names)) < len(names):
            raise ValueError(f"Two sets of texts have the same name: {', '.join(names)}. Write name=source.")


@dataclass(frozen=True)
class StudySettings(NetworkSettings):
    """The settings that bounds and judged samples need besides the networks and texts.

    Args:
        autoregressive: the AR model, which judges samples.
        vocabulary: corpus whose training split has the words that are spelled right.
        num_texts: blocks of each set that are scored.
        noise_samples: per text, 1 or an even number.
        others: see `NetworkSettings`.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    vocabulary: str | None = None
    num_texts: int = 128
    noise_samples: int = 8

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, ("num_texts", "noise_samples"))
        if self.noise_samples > 1 and self.noise_samples % 2:
            raise ValueError(f"noise_samples is {self.noise_samples}, but it must be 1 or even (they come in pairs).")


__all__ = ["DTYPES", "NetworkSettings", "StudySettings", "check_distinct", "check_dtype", "check_positive"]
