"""Options that several commands have."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from edlm_hf.commands.progress import running
from edlm_hf.parsing import name_and_value
from edlm_hf.settings import option
from edlm_hf.terminal import tell

MODEL_HELP = "Folder or Hub repository, or a checkpoint that ships (edlm-books)."
# Times the number of processes it still fits into the 64 bits of torch's seeds
LARGEST_SEED = 2**48


def seed_of(text: str) -> int:
    """`7` -> 7.

    Raises:
        ValueError: it is not the seed of a generator, also where each of many processes has its own.
    """
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise ValueError(f"{text!r} is not a whole number from 0 to {LARGEST_SEED}.")
    return int(text)


def text_of(words: str) -> str:
    """Return the text of a flag as it is.

    Raises:
        ValueError: its bytes were not UTF-8, so that a tokenizer cannot read it.
    """
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text is not UTF-8: character {error.start + 1} of {words!r} is none. Write it in UTF-8."
        ) from None
    return words


def prompt_option() -> dataclasses.Field:
    """The prompt of a command."""
    return option(None, parser=text_of, help="Text to continue; mask tokens in it are filled.")


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """A sampler and its parameters.

    Raises:
        ValueError: there is no such sampler, or it does not have the parameter or its value.
    """

    sampler: str | None = option(
        None,
        shown="the model's",
        help="Which masks a step reveals: ancestral, first_hitting, dilated, spaced, top_k, entropy_bound, threshold, "
        "factor, klass, remdm, low_confidence, edit or speculative.",
    )
    sampler_option: tuple[tuple[str, object], ...] = option(
        (),
        parser=name_and_value,
        repeated=True,
        metavar="NAME=VALUE",
        help="A parameter of the sampler, such as score=margin; repeat for more.",
    )

    def __post_init__(self):
        from edlm_hf.modeling.sampler_choice import PARAMETERS, make_sampler

        parameters = dict(self.sampler_option)
        unknown = sorted(set(parameters) - PARAMETERS)
        if unknown:
            raise ValueError(f"No sampler has {', '.join(unknown)}. There are {', '.join(sorted(PARAMETERS))}.")

        # Made once for its checks, with any T. The sampler of the model is not known here
        if self.sampler is not None:
            make_sampler(self.sampler, num_steps=1, parameters=parameters)

    def arguments(self) -> dict:
        """Keyword arguments of `generate()`."""
        arguments = {}
        if self.sampler is not None:
            arguments["sampler"] = self.sampler
        arguments.update(self.sampler_option)
        return arguments


@dataclass(frozen=True, kw_only=True)
class ResultFolder:
    """Where a benchmark writes."""

    output: Path = option(help="Folder for results.json, results.md, plots and finished parts.")


def check_output_file(path: Path, flag: str) -> None:
    """Raise typer.BadParameter unless the folder of a file to write is there, and no folder has its name."""
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder.", param_hint=flag)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"There is no folder {path.parent}: make it first.", param_hint=flag)


def run_with_bar(run: Callable[..., dict], settings, folder: ResultFolder) -> dict:
    """The result of a benchmark, whose progress a bar on a terminal shows."""
    progress, advance = running()
    with progress:
        return run(settings, folder.output, advance)


def tell_missing_plots(result: dict) -> None:
    """Tell how to get plots, where a benchmark made none."""
    if not result["plots"]:
        tell("No plots: matplotlib is not installed (pip install matplotlib).")


def without_none(options: dict) -> dict:
    """The options that were given. The others keep the default of what they are passed to."""
    return {name: value for name, value in options.items() if value is not None}


__all__ = [
    "MODEL_HELP",
    "ResultFolder",
    "SamplerOptions",
    "check_output_file",
    "prompt_option",
    "run_with_bar",
    "seed_of",
    "tell_missing_plots",
    "without_none",
]
