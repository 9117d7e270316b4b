"""The measurements as metrics of `evaluate`: the same numbers, as classes and loaded by path without a network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from published import tiny_denoiser, tiny_gpt2

from edlm_hf import metrics
from edlm_hf.evaluation.likelihood import sampler_bound
from edlm_hf.evaluation.perplexity import generative_perplexity
from edlm_hf.evaluation.text_statistics import distinct_n, unigram_entropy
from edlm_hf.metrics import (
    METRICS,
    AutoregressiveNll,
    DistinctN,
    EstimateMetric,
    GenerativePerplexity,
    SamplerBound,
    SpellingAccuracy,
    UnigramEntropy,
)
from edlm_hf.tokenization import text8_tokenizer

TEXTS = ["the cat sat on the mat", "a dog", "the the the"]
IDS = [[1, 2, 3, 4], [5, 5]]
FOLDERS = sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").exists())


def renamed(result, name):
    values = result.to_dict()
    return {name: values.pop("value")} | values


def test_every_metric_has_a_folder_to_load_it_from(tmp_path):
    classes = [
        item
        for item in vars(metrics).values()
        if isinstance(item, type) and issubclass(item, EstimateMetric) and hasattr(item, "measure")
    ]
    assert sorted(metric(cache_dir=tmp_path).name for metric in classes) == FOLDERS


def test_metrics_give_the_numbers_of_the_functions(tmp_path):
    entropy = UnigramEntropy(cache_dir=tmp_path)
    assert entropy.compute(predictions=IDS) == renamed(unigram_entropy(IDS), "unigram_entropy")
    assert entropy.compute(predictions=torch.tensor([[1, 2], [3, 3]]))["unigram_entropy"] == 0.5
    distinct = DistinctN(cache_dir=tmp_path)
    assert distinct.compute(predictions=TEXTS, n=1) == renamed(distinct_n(TEXTS, 1), "distinct_n")
    assert distinct.compute(predictions=IDS) == renamed(distinct_n(IDS), "distinct_n")
    spelling = SpellingAccuracy(cache_dir=tmp_path)
    assert spelling.compute(predictions=TEXTS, vocabulary={"the"})["spelling_accuracy"] == 5 / 11


def test_likelihoods_take_the_model_as_an_argument_of_compute(tmp_path):
    model, texts = tiny_denoiser(), [[1, 2, 3, 4], [5, 5]]
    bound = SamplerBound(cache_dir=tmp_path).compute(
        predictions=texts,
        model=model,
        num_steps=3,
        seed=1,
    )
    assert bound == renamed(sampler_bound(model, texts, num_steps=3, seed=1), "sampler_bound")
    exact = AutoregressiveNll(cache_dir=tmp_path).compute(predictions=texts, model=tiny_gpt2())
    assert exact["autoregressive_nll"] > 0 and exact["num_tokens"] == 6


def test_samples_can_be_added_in_parts(tmp_path):
    entropy = UnigramEntropy(cache_dir=tmp_path)
    entropy.add_batch(predictions=IDS[:1])
    entropy.add(prediction=IDS[1])
    assert entropy.compute() == renamed(unigram_entropy(IDS), "unigram_entropy")


def test_the_judge_is_an_argument_of_compute(tmp_path):
    judge, tokenizer = tiny_gpt2(vocab_size=29, n_positions=64, bos_token_id=27, eos_token_id=27), text8_tokenizer()
    result = GenerativePerplexity(cache_dir=tmp_path).compute(
        predictions=TEXTS,
        judge=judge,
        tokenizer=tokenizer,
    )
    assert result == renamed(generative_perplexity(TEXTS, judge, tokenizer), "generative_perplexity")
    assert result["num_tokens"] == sum(len(text) - 1 for text in TEXTS)


def test_a_metric_explains_itself_and_its_errors_are_those_of_the_function(tmp_path):
    distinct = DistinctN(cache_dir=tmp_path)
    assert "Share of n-grams that are new within their sample" in distinct.description
    assert "samples: texts, of which the words count, or token ids" in distinct.compute.__doc__
    with pytest.raises(ValueError, match="n is 0"):
        distinct.compute(predictions=TEXTS, n=0)
    assert distinct.compute(predictions=TEXTS) == renamed(distinct_n(TEXTS), "distinct_n")


LOAD = """
import json, socket, sys

def refuse(*_, **__):
    raise AssertionError("a network look-up")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import evaluate
folder, names = sys.argv[1], sys.argv[2:]
loaded = {name: evaluate.load(f"{folder}/{name}") for name in names}
entropy = loaded["unigram_entropy"].compute(predictions=[[1, 2, 3, 4], [5, 5]])
print(json.dumps([{name: metric.name for name, metric in loaded.items()}, entropy]))
"""


def test_evaluate_loads_every_folder_without_a_network(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(METRICS), *FOLDERS],
        env=environment | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    names, entropy = json.loads(result.stdout)
    assert names == {name: name for name in FOLDERS}
    assert entropy == renamed(unigram_entropy(IDS), "unigram_entropy")
