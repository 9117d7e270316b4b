"""`edlm generate`: texts, and the masks of a prompt filled in."""

from dataclasses import dataclass
from pathlib import Path

from edlm_hf.commands.shared import (
    MODEL_HELP,
    SamplerOptions,
    check_output_file,
    prompt_option,
    seed_of,
    without_none,
)
from edlm_hf.files import to_json, write_atomically
from edlm_hf.settings import check_dtype, device_option, option
from edlm_hf.terminal import write

OF_THE_MODEL = "the model's"


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The model, the prompt, and the texts that are wanted.

    Raises:
        ValueError: there is no such precision.
    """

    model: str = option(help=MODEL_HELP)
    tokenizer: str | None = option(None, help="Where it is not beside the model.")
    prompt: str | None = prompt_option()
    num_return_sequences: int = option(1, min=1, old=("samples",), help="How many texts.")
    max_new_tokens: int | None = option(None, min=1, help="Length of the continuation.")
    block_length: int | None = option(
        None, min=1, help="Fill blocks of so many tokens, left to right; needed beyond the model's length."
    )
    batch_size: int = option(16, min=1, help="Texts at a time.")
    seed: int | None = option(None, parser=seed_of, help="Seed; random unless given.")
    dtype: str | None = option(None, shown="as stored", help="float32, bfloat16 or float16.")
    device: str = device_option()
    html: Path | None = option(None, help="Web page to write: steps and energies.")

    def __post_init__(self):
        if self.dtype is not None:
            check_dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step of the reverse chain does. What is not given is as the model is set to."""

    max_denoising_steps: int | None = option(None, min=1, shown=OF_THE_MODEL, old=("steps",), help="Denoising steps T.")
    greedy: bool = option(False, help="Take the likeliest tokens: nothing is drawn.")
    temperature: float | None = option(None, shown=OF_THE_MODEL, help="Divides the logits of tokens; above 0.")
    top_k: int | None = option(None, min=0, shown=OF_THE_MODEL, help="Draw from so many likeliest tokens; 0: all.")
    top_p: float | None = option(
        None, min=0, max=1, shown=OF_THE_MODEL, help="Draw from the likeliest tokens that have this share together."
    )
    num_candidates: int | None = option(
        None,
        min=1,
        shown=OF_THE_MODEL,
        old=("candidates",),
        help="Candidates k that an energy weighs; 1 switches it off.",
    )
    energy_window: float | None = option(
        None, min=0, max=1, shown=OF_THE_MODEL, old=("window",), help="w: the energy acts at t in [1 - w, 1]."
    )
    energy_temperature: float | None = option(
        None, shown=OF_THE_MODEL, help="Divides the energies of candidates; above 0."
    )
    energy_scope: str | None = option(
        None, shown=OF_THE_MODEL, help="sequence: an energy weighs whole texts. revealed: what the step reveals."
    )

    def arguments(self) -> dict:
        """Keyword arguments of `generate()`."""
        # `--greedy` off leaves it to the model, whose configuration may say do_sample=False
        given = without_none(vars(self))
        if given.pop("greedy"):
            given["do_sample"] = False
        return given


def generate(text: TextOptions, sampler: SamplerOptions, steps: StepOptions, as_json: bool) -> None:
    """Generate text, or fill the mask tokens of a prompt; in a terminal a single text is shown while it forms.

    Under torchrun the processes share the texts, each with random numbers of its own.
    """
    # A wrong path is found out before torch is imported
    if text.html is not None:
        check_output_file(text.html, "--html")

    from edlm_hf.commands.text_generation import generate_texts
    from edlm_hf.modeling.generation_config_edlm import EDLMGenerationConfig
    from edlm_hf.processes import gather_turns, rank_and_world_size
    from edlm_hf.visualization import page

    # 1. The options, checked before anything is loaded
    length = {
        "max_new_tokens": text.max_new_tokens,
        "block_length": text.block_length,
    }
    options = {
        **without_none(length),
        **sampler.arguments(),
        **steps.arguments(),
    }
    EDLMGenerationConfig(**options)

    # 2. The texts of all processes
    process, processes = rank_and_world_size()
    texts, rows = generate_texts(text, options, process, processes, as_json)
    texts = gather_turns(texts)
    rows = gather_turns(rows)
    if process != 0:
        return

    # 3. The page and the result
    if text.html is not None:
        write_atomically(text.html, page(rows).encode())
    write(to_json(texts) if as_json else "\n\n".join(texts))
