"""Statistics of samples that need no model: entropies, repetition, spelling, and MAUVE against human texts.

Words are the strings between white space; those of spelling are runs of letters and digits, in
lower case.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch

from edlm_hf.evaluation.estimate import Estimate, mean_estimate, ratio_estimate
from edlm_hf.evaluation.sample_lists import as_list, check_texts


def unigram_entropy(ids: Sequence[Sequence[int]] | torch.Tensor) -> Estimate:
    """Mean over samples of -sum_v f_v log2 f_v in bits, f the frequencies of the tokens within a sample.

    Args:
        ids: (B, L), or B lists of any lengths. All of them count: leave padding out.

    Raises:
        ValueError: no samples.
    """
    entropies = [entropy_bits(row) for row in as_list(ids, "ids")]
    return mean_estimate(entropies, "bits")


def word_entropy(texts: Sequence[str]) -> Estimate:
    """`unigram_entropy` of the words of a text. A text without words has 0 bits.

    Raises:
        ValueError: no texts.
    """
    texts = as_list(texts, "texts")
    check_texts(texts)
    words = [text.split() for text in texts]
    return unigram_entropy(words)


def entropy_bits(tokens: Sequence) -> float:
    """sum_v f_v log2(1 / f_v) of the frequencies f of the tokens (any hashable things), 0 without tokens."""
    total = len(tokens)
    counts = Counter(tokens).values()

    terms = [count / total * math.log2(total / count) for count in counts]
    return sum(terms)


def distinct_n(samples: Sequence[str] | Sequence[Sequence[int]] | torch.Tensor, n: int = 2) -> Estimate:
    """Share of n-grams that are new within their sample, 1 without repetition (Li et al., arXiv 1510.03055).

    Args:
        samples: texts, of which the words count, or token ids: (B, L), or B lists. A sample of fewer
            than n tokens adds nothing.

    Raises:
        ValueError: no samples, n < 1, or no sample has n tokens.
    """
    if n < 1:
        raise ValueError(f"n is {n}, but an n-gram has at least 1 token.")

    # Words of texts, or token ids as they are
    samples = as_list(samples, "samples")
    rows = [sample.split() if isinstance(sample, str) else sample for sample in samples]

    grams = [n_grams(row, n) for row in rows]
    if not any(grams):
        raise ValueError(f"None of the {len(rows)} samples has {n} tokens: choose a smaller n.")

    # Per sample. The ratio of their sums weighs long samples more.
    distinct = [len(set(row_grams)) for row_grams in grams]
    total = [len(row_grams) for row_grams in grams]
    return ratio_estimate(distinct, total, f"distinct {n}-grams")


def n_grams(tokens: Sequence, n: int) -> list[tuple]:
    """All runs of n tokens.

    >>> n_grams("abcd", 3)
    [('a', 'b', 'c'), ('b', 'c', 'd')]
    """
    num_grams = len(tokens) - n + 1
    return [tuple(tokens[begin : begin + n]) for begin in range(num_grams)]


def spelled_words(text: str) -> list[str]:
    """The runs of letters and digits of a text, in lower case, without plain numbers.

    >>> spelled_words("Don't stop: 7 o'clock!")
    ['don', 't', 'stop', 'o', 'clock']
    """
    # Digits, a letter, then letters and digits. \W and _ are everything else.
    return re.findall(r"\d*[^\W\d_][^\W_]*", text.lower())


def vocabulary_of(texts: Iterable[str], min_count: int = 1) -> frozenset[str]:
    """The words, as spelled, that occur at least `min_count` times in all."""
    counts = Counter(word for text in texts for word in spelled_words(text))
    return frozenset(word for word, count in counts.items() if count >= min_count)


def spelling_accuracy(texts: Sequence[str], vocabulary: Collection[str]) -> Estimate:
    """Share of words, of all texts, that are in a vocabulary, such as `vocabulary_of` the training texts.

    Words are `spelled_words`, and so are those of the vocabulary. One that the end of a sample cuts
    in two counts like any other: compare with samples of the data of equal length.

    Raises:
        ValueError: no texts, no vocabulary, or no word in any text.
    """
    # The vocabulary is spelled by the same rule, so that "Don't" in it knows "don" and "t"
    texts = as_list(texts, "texts")
    check_texts(texts)
    words = [spelled_words(text) for text in texts]
    vocabulary = vocabulary_of(as_list(vocabulary, "vocabulary"))
    if not vocabulary:
        raise ValueError("There is not a word in the vocabulary: a word has a letter.")
    if not any(words):
        raise ValueError(f"There is not a word in the {len(words)} texts.")

    # Per text
    known = [sum(word in vocabulary for word in text_words) for text_words in words]
    total = [len(text_words) for text_words in words]
    return ratio_estimate(known, total, "known words")


def mauve(texts: Sequence[str], references: Sequence[str], **arguments) -> Estimate:
    """MAUVE (Pillutla et al., arXiv 2102.01454) between samples and human texts, by the package `mauve-text`.

    Args:
        arguments: for `mauve.compute_mauve`, such as `featurize_model_name` or `device_id`.

    Returns:
        The score between 0 and 1. The package gives no standard error: NaN.

    Raises:
        ImportError: the package is not installed.
        ValueError: no texts or no references.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ImportError("MAUVE is computed by a package of its own: pip install mauve-text") from error

    texts = as_list(texts, "texts")
    references = as_list(references, "references")
    arguments = {"verbose": False} | arguments  # else the package prints its progress

    # p is the human text, q the samples, as in the paper
    result = compute_mauve(p_text=references, q_text=texts, **arguments)
    return Estimate(float(result.mauve), math.nan, len(texts), "MAUVE")
