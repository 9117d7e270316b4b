"""`edlm evaluate`: the likelihood of a corpus under a model."""

import sys
from dataclasses import dataclass

from edlm_hf.commands.shared import SamplerOptions
from edlm_hf.files import to_json
from edlm_hf.settings import check_dtype, device_option, option
from edlm_hf.terminal import write

# Functions of `edlm_hf.evaluation`
METRICS = ("nelbo", "discrete_nelbo", "sampler_bound", "paper_nll", "autoregressive_nll", "h_profile")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured.

    Without a stride documents are joined and cut into blocks: with end-of-text between them where the tokenizer has it,
    nothing left out.

    Raises:
        ValueError: an unknown metric or dtype, no metric, or a number below 1.
    """

    model: str = option(help="Folder or Hub repository, or a checkpoint that ships (edlm-books).")
    dataset: str = option(
        old=("data",), help="A protocol (text8, openwebtext, wikitext2, ...), a dataset of the Hub, or files."
    )
    metrics: tuple[str, ...] = option(("nelbo",), help=f"Of {', '.join(METRICS)}.")
    tokenizer: str | None = option(None, help="Where it is not beside the model.")
    split: str | None = option(None, shown="the protocol's, or test", help="Of the dataset.")
    text_column: str | None = option(None, shown="text, or the only one", help="Column of the dataset.")
    normalize_text8: bool | None = option(
        None,
        shown="as the tokenizer needs",
        old=("normalize",),
        old_values={"text8": True, "none": False},
        help="Bring the text to the 27 characters of text8; --no-normalize-text8 leaves it.",
    )
    length: int | None = option(None, shown="the protocol's, or the model's", help="Tokens per text.")
    stride: int | None = option(None, help="Windows on every document, moved by so many tokens, instead of blocks.")
    num_texts: int | None = option(None, shown="all", help="The first so many texts only.")
    num_steps: int = option(128, help="T of the sampler.")
    num_candidates: int | None = option(None, shown="the model's", help="k of the sampler.")
    inner_copies: int = option(1, help="m of the sampler bound; larger ones are tighter.")
    energy_window: float | None = option(None, shown="the model's", help="w of the sampler.")
    num_samples: int = option(2, help="Noise samples per text, even or 1.")
    batch_size: int = option(16, help="Changes the speed only.")
    seed: int = option(0, help="Of the noise.")
    dtype: str | None = option(None, shown="as stored", help="float32, bfloat16 or float16.")
    device: str = device_option()

    def __post_init__(self):
        # Checked here, before a model is loaded
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics has {unknown or 'nothing'}, but it must name some of {', '.join(METRICS)}.")
        if self.dtype is not None:
            check_dtype(self.dtype)

        # None leaves the choice to the protocol and the model
        for name in ("length", "stride", "num_texts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but it must be at least 1.")


def evaluate(settings: EvaluationSettings, sampler: SamplerOptions, as_json: bool) -> None:
    """Likelihood of a corpus under a model, with standard errors; under torchrun the processes share the work."""
    import torch

    from edlm_hf.benchmarks.report import environment
    from edlm_hf.commands.corpus_evaluation import evaluate_model
    from edlm_hf.processes import rank_and_world_size

    evaluation = evaluate_model(settings, sampler.arguments(), progress_bar=sys.stderr.isatty())

    # All processes have the whole result, and the first one prints it
    rank, _ = rank_and_world_size()
    if rank != 0:
        return

    if as_json:
        result = evaluation.to_dict()
        result["environment"] = environment(torch.device(settings.device))
        write(to_json(result))
    else:
        write(evaluation.markdown())


__all__ = ["METRICS", "EvaluationSettings", "evaluate"]
