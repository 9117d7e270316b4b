"""Likelihoods of models and the quality of samples, each number with its standard error."""

from edlm_hf.evaluation.autoregressive_likelihood import autoregressive_nll
from edlm_hf.evaluation.estimate import Estimate
from edlm_hf.evaluation.h_profile import HProfile, h_profile
from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound
from edlm_hf.evaluation.log_partition import LogPartitionBounds, log_partition_bounds
from edlm_hf.evaluation.paper_likelihood import paper_nll
from edlm_hf.evaluation.perplexity import PerplexityEstimate, generative_perplexity
from edlm_hf.evaluation.quality import sample_report
from edlm_hf.evaluation.scoring import LikelihoodEstimate
from edlm_hf.evaluation.text_statistics import (
    distinct_n,
    mauve,
    spelling_accuracy,
    unigram_entropy,
    vocabulary_of,
    word_entropy,
)

__all__ = [
    "Estimate",
    "HProfile",
    "LikelihoodEstimate",
    "LogPartitionBounds",
    "PerplexityEstimate",
    "autoregressive_nll",
    "discrete_nelbo",
    "distinct_n",
    "generative_perplexity",
    "h_profile",
    "log_partition_bounds",
    "mauve",
    "nelbo",
    "paper_nll",
    "sample_report",
    "sampler_bound",
    "spelling_accuracy",
    "unigram_entropy",
    "vocabulary_of",
    "word_entropy",
]
