"""The quality of samples in one report: generative perplexity, the diversity without which it means nothing, and cost.

A judge likes repetition, so that a low generative perplexity at a low entropy is not a success. Every
number comes with its standard error over samples.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from edlm_hf.evaluation.estimate import Estimate, mean_estimate
from edlm_hf.evaluation.perplexity import PerplexityEstimate, generative_perplexity
from edlm_hf.evaluation.text_statistics import spelling_accuracy, unigram_entropy, word_entropy

COLUMNS = (
    "samples",
    "n",
    "Gen-PPL",
    "entropy (bits)",
    "word entropy (bits)",
    "known words",
    "denoiser calls",
    "energy calls",
    "seconds",
)


@dataclass(frozen=True)
class SampleReport:
    """Quality of samples beside their cost. A measure that was not asked for is None."""

    num_samples: int
    generative_perplexity: PerplexityEstimate | None
    unigram_entropy: Estimate
    word_entropy: Estimate
    spelling_accuracy: Estimate | None
    denoiser_calls: Estimate
    energy_calls: Estimate
    seconds_per_sample: float

    def to_dict(self) -> dict:
        """The fields by name, each estimate as a dictionary of its own."""
        return asdict(self)


def sample_report(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]] | torch.Tensor,
    *,
    judge: str | PreTrainedModel | None,
    denoiser_calls: Sequence[int] | torch.Tensor,
    energy_calls: Sequence[int] | torch.Tensor,
    seconds: float,
    vocabulary: Collection[str] | None = None,
    **judge_options,
) -> SampleReport:
    """Everything that a claim about samples has to come with.

    Args:
        texts: B samples.
        ids: the same samples as tokens of the model that made them.
        judge: for `generative_perplexity`, which is left out without a judge.
        judge_options: its other arguments.
        denoiser_calls: (B,) per sample, as `generate` counts them.
        energy_calls: (B,) likewise.
        seconds: for all samples together.
        vocabulary: for `spelling_accuracy`, which is left out without one.

    Raises:
        ValueError: the samples, texts and calls are not equally many, or a measure refuses them.
    """
    # All of them are (B,) along the first dimension
    given = {
        "texts": texts,
        "ids": ids,
        "denoiser_calls": denoiser_calls,
        "energy_calls": energy_calls,
    }
    sizes = {name: len(values) for name, values in given.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"These must be one per sample, but their lengths are {sizes}.")

    # Measures that need more than the samples
    perplexity = None
    if judge is not None:
        perplexity = generative_perplexity(texts, judge, **judge_options)

    spelling = None
    if vocabulary is not None:
        spelling = spelling_accuracy(texts, vocabulary)

    return SampleReport(
        num_samples=len(texts),
        generative_perplexity=perplexity,
        unigram_entropy=unigram_entropy(ids),
        word_entropy=word_entropy(texts),
        spelling_accuracy=spelling,
        denoiser_calls=mean_estimate(denoiser_calls, "calls/sample"),
        energy_calls=mean_estimate(energy_calls, "calls/sample"),
        seconds_per_sample=seconds / len(texts),
    )


def markdown_table(reports: Mapping[str, SampleReport]) -> str:
    """One row per named report, `value ± standard error`. Calls and seconds are per sample."""
    # The line under the header makes it a table
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for name, report in reports.items():
        rows.append(table_row(name, report))

    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join(lines)


def table_row(name: str, report: SampleReport) -> list[str]:
    """The cells of a report under COLUMNS."""
    estimates = [
        report.generative_perplexity,
        report.unigram_entropy,
        report.word_entropy,
        report.spelling_accuracy,
        report.denoiser_calls,
        report.energy_calls,
    ]
    # A measure that was not asked for is a dash
    cells = ["-" if estimate is None else estimate.rounded() for estimate in estimates]
    seconds = f"{report.seconds_per_sample:.3g}"
    return [name, str(report.num_samples), *cells, seconds]
