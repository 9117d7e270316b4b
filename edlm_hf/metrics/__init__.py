"""The measurements of `edlm_hf.evaluation` as metrics of the `evaluate` package.

UnigramEntropy().compute(predictions=ids)
SamplerBound().compute(predictions=ids, model=model, num_steps=64)
evaluate.load(str(METRICS / "unigram_entropy")).compute(predictions=ids)

The samples are the predictions, added one by one or in batches. Every other argument of the function
is an argument of `compute`. The result is the result of the function as a dictionary, with its value
under the name of the metric. Nothing is downloaded.

`evaluate.load` copies the script of a folder here, which must have the folder's name, and takes the
first metric in it. The scripts import their metric from this file, so that no code exists twice.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import evaluate
from datasets import Features, Sequence, Value

from edlm_hf.evaluation import (
    autoregressive_nll,
    discrete_nelbo,
    distinct_n,
    generative_perplexity,
    nelbo,
    paper_nll,
    sampler_bound,
    spelling_accuracy,
    unigram_entropy,
    word_entropy,
)
from edlm_hf.evaluation.estimate import Estimate

METRICS = Path(__file__).parent  # the folder of the scripts

# Kinds of samples
TEXTS = Features({"predictions": Value("string")})
IDS = Features({"predictions": Sequence(Value("int64"))})
CITATION = """\
@inproceedings{xu2025edlm,
  title = {Energy-Based Diffusion Language Models for Text Generation},
  author = {Xu, Minkai and Geffner, Tomas and Kreis, Karsten and Nie, Weili and Xu, Yilun and Leskovec, Jure and
            Ermon, Stefano and Vahdat, Arash},
  booktitle = {ICLR},
  year = {2025}
}
"""


class EstimateMetric(evaluate.Metric):
    """`compute(predictions=samples, **arguments)` is `measure(samples, **arguments)` as a dictionary.

    Attributes:
        measure: the function.
        samples: the kinds of samples that it takes.
    """

    measure: Callable[..., Estimate]
    samples: Features | list[Features]

    def _info(self) -> evaluate.MetricInfo:
        docstring = inspect.getdoc(self.measure)
        summary = docstring.split("\n\n")[0]
        return evaluate.MetricInfo(
            description=summary,
            citation=CITATION,
            inputs_description=f"\n\nThe predictions are the samples of:\n\n{docstring}",
            features=self.samples,
        )

    def _compute(self, predictions, **arguments) -> dict:
        result = self.measure(predictions, **arguments).to_dict()
        return {self.name: result.pop("value")} | result


class GenerativePerplexity(EstimateMetric):
    measure = staticmethod(generative_perplexity)
    samples = TEXTS


class UnigramEntropy(EstimateMetric):
    measure = staticmethod(unigram_entropy)
    samples = IDS


class WordEntropy(EstimateMetric):
    measure = staticmethod(word_entropy)
    samples = TEXTS


class DistinctN(EstimateMetric):
    measure = staticmethod(distinct_n)
    samples = [TEXTS, IDS]


class SpellingAccuracy(EstimateMetric):
    measure = staticmethod(spelling_accuracy)
    samples = TEXTS


class LikelihoodMetric(EstimateMetric):
    """`compute(predictions=ids, model=model, **arguments)` is `measure(model, ids, **arguments)` as a dictionary."""

    samples = IDS

    def _compute(self, predictions, model, **arguments) -> dict:
        result = self.measure(model, predictions, **arguments).to_dict()
        return {self.name: result.pop("value")} | result


class Nelbo(LikelihoodMetric):
    measure = staticmethod(nelbo)


class DiscreteNelbo(LikelihoodMetric):
    measure = staticmethod(discrete_nelbo)


class SamplerBound(LikelihoodMetric):
    measure = staticmethod(sampler_bound)


class PaperNll(LikelihoodMetric):
    measure = staticmethod(paper_nll)


class AutoregressiveNll(LikelihoodMetric):
    measure = staticmethod(autoregressive_nll)
