"""`edlm picture`: one generation as SVG."""

from dataclasses import dataclass
from pathlib import Path

import typer

from edlm_hf.commands.shared import (
    MODEL_HELP,
    SamplerOptions,
    check_output_file,
    prompt_option,
    seed_of,
    without_none,
)
from edlm_hf.defaults import COLUMNS, MOST_ANIMATED_STATES, MOST_STATES
from edlm_hf.files import to_json, write_atomically
from edlm_hf.settings import device_option, option
from edlm_hf.terminal import write


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is generated, and how it is drawn."""

    model: str = option(help=MODEL_HELP)
    output: Path = option(help="SVG file to write.")
    prompt: str | None = prompt_option()
    max_new_tokens: int | None = option(
        None, min=0, shown="as many as a picture holds", help="Tokens that continue it."
    )
    max_denoising_steps: int = option(8, min=1, old=("steps",), help="Denoising steps T.")
    num_candidates: int = option(8, min=1, old=("candidates",), help="Candidates k that an energy weighs.")
    temperature: float | None = option(None, shown="the model's", help="Of the denoiser's distribution.")
    columns: int = option(COLUMNS, min=16, help="Letters of a line.")
    states: int | None = option(
        None,
        min=2,
        help=f"States at most, at even distances: {MOST_STATES} unless given, {MOST_ANIMATED_STATES} with --animate.",
    )
    animate: bool = option(False, help="One state after the other in one place, not one below the other.")
    seed: int = option(0, parser=seed_of, help="Seed of all randomness.")
    device: str = device_option()


def picture(options: PictureOptions, sampler: SamplerOptions, as_json: bool) -> None:
    """Draw one generation as SVG: its states from mask to text, and the energies of the candidates of every step."""
    # A wrong path is found out before torch is imported
    if options.output.suffix != ".svg":
        raise typer.BadParameter(f"{options.output.name} must end with .svg.", param_hint="--output")
    check_output_file(options.output, "--output")

    from edlm_hf.picture import make_picture

    drawn = make_picture(
        options.model,
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        device=options.device,
        columns=options.columns,
        most_states=options.states,
        animate=options.animate,
        max_denoising_steps=options.max_denoising_steps,
        num_candidates=options.num_candidates,
        **without_none({"temperature": options.temperature}),
        **sampler.arguments(),
    ).encode()

    write_atomically(options.output, drawn)
    result = {"output": str(options.output), "bytes": len(drawn)}
    write(to_json(result) if as_json else f"{options.output}: {len(drawn):,} bytes")
