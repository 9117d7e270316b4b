"""The measurements of `edlm_hf.evaluation` as metrics of the `evaluate` package.

UnigramEntropy().compute(predictions=ids)
SamplerBound().compute(predictions=ids, model=model, num_steps=64)
evaluate.load(str(METRICS / "unigram_entropy")).compute(predictions=ids)

Samples are the predictions, added one by one or in batches; every other argument of the function goes to `compute`.
The result is that of the function as a dictionary, its value under the name of the metric. Nothing is downloaded.

`evaluate.load` copies the script of a folder here, which must have the folder's name, and takes the first metric in
it; the scripts import their metric from this file, so that no code exists twice.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import evaluate
from datasets import Features, Sequence, Value

from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo, nelbo, paper_nll, sampler_bound
from edlm_hf.evaluation.estimate import Estimate
from edlm_hf.evaluation.quality import (
    distinct_n,
    generative_perplexity,
    spelling_accuracy,
    unigram_entropy,
    word_entropy,
)

METRICS = Path(__file__).parent
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
    """`compute(predictions=samples, **arguments)` is `measure(samples, **arguments)` as a dictionary."""

    measure: Callable[..., Estimate]
    samples: Features | list[Features]

    def _info(self) -> evaluate.MetricInfo:
        text = inspect.getdoc(self.measure)
        return evaluate.MetricInfo(
            description=text.split("\n\n")[0],
            citation=CITATION,
            inputs_description=f"\n\nThe predictions are the samples of:\n\n{text}",
            features=self.samples,
        )

    def _compute(self, predictions, **arguments) -> dict:
        result = self.measure(predictions, **arguments).to_dict()
        return {self.name: result.pop("value")} | result


class GenerativePerplexity(EstimateMetric):
    measure, samples = staticmethod(generative_perplexity), TEXTS


class UnigramEntropy(EstimateMetric):
    measure, samples = staticmethod(unigram_entropy), IDS


class WordEntropy(EstimateMetric):
    measure, samples = staticmethod(word_entropy), TEXTS


class DistinctN(EstimateMetric):
    measure, samples = staticmethod(distinct_n), [TEXTS, IDS]


class SpellingAccuracy(EstimateMetric):
    measure, samples = staticmethod(spelling_accuracy), TEXTS


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
