"""Checks of settings, and the settings that the studies of quality and of samplers share."""

from dataclasses import Field, dataclass

from edlm_hf.settings import check_dtype, device_option, existing_device, option

# Precisions of networks in benchmarks
DTYPES = ("float32", "bfloat16")


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


def dtype_option() -> Field:
    """The precision of the networks of a benchmark."""
    return option("float32", help=f"{' or '.join(DTYPES)}.")


def steps_option(default: tuple[int, ...], help: str = "Values of T.") -> Field:
    """Numbers of denoising steps."""
    return option(default, flag="max-denoising-steps", old=("steps",), help=help)


@dataclass(frozen=True)
class NetworkSettings:
    """The networks and texts of a study.

    A set of texts that is named after a protocol is cleaned like it (`wikitext2=test.parquet`). The split is the
    evaluation split of a protocol, otherwise "test". The fields have the names that they have in results.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    model: str = option(help="Denoiser with its tokenizer, or an EDLM composite; folder or Hub.")
    data: tuple[str, ...] = option(
        flag="dataset",
        old=("data",),
        repeated=True,
        help="A protocol, a dataset of the Hub, files, or name=source; repeat for more.",
    )
    autoregressive: str | None = option(None, help="AR model, the energy of EDLM-AR.")
    text_column: str | None = option(
        None, shown="text, or the only one", help="Column of files and datasets that are not a protocol."
    )
    batch_size: int = option(16, help="Rows per batch.")
    dtype: str = dtype_option()
    device: str = device_option()

    def __post_init__(self):
        from edlm_hf.benchmarks.text_sets import named_source

        check_distinct(self, ("data",))
        check_positive(self, ("batch_size",))
        check_dtype(self.dtype, DTYPES)
        existing_device(self.device)

        # The name is how the rows of a set are found again in the results
        names = [named_source(text)[0] for text in self.data]
        if len(set(names)) < len(names):
            raise ValueError(f"Two sets of texts have the same name: {', '.join(names)}. Write name=source.")


@dataclass(frozen=True)
class StudySettings(NetworkSettings):
    """The settings that bounds and judged samples need besides the networks and texts.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    vocabulary: str | None = option(None, help="Corpus whose training split has the words that are spelled right.")
    num_texts: int = option(128, old=("texts",), help="Blocks of each set for the bounds.")
    noise_samples: int = option(
        8, flag="num-samples", old=("noise-samples",), help="Noise samples per text, 1 or even."
    )

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, ("num_texts", "noise_samples"))

        # Two samples for each part of the time: their difference tells the standard error of the noise
        if self.noise_samples > 1 and self.noise_samples % 2:
            raise ValueError(f"noise_samples is {self.noise_samples}, but it must be 1 or even (they come in pairs).")


__all__ = [
    "DTYPES",
    "NetworkSettings",
    "StudySettings",
    "check_distinct",
    "check_positive",
    "dtype_option",
    "steps_option",
]
