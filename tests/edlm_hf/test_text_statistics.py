"""Entropies, new n-grams, spelling and MAUVE of samples have known answers."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from published import golden

from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.evaluation.text_statistics import (
    distinct_n,
    mauve,
    spelling_accuracy,
    unigram_entropy,
    vocabulary_of,
    word_entropy,
)


def test_golden_entropy():
    g = golden("g_metrics")
    for row, bits in zip(g["tokens"], g["entropy_bits"], strict=True):
        assert unigram_entropy(row[None]).value == pytest.approx(bits.item(), abs=1e-6)
    result = unigram_entropy(g["tokens"])
    assert (result.num_samples, result.unit) == (5, "bits")
    assert result.value == pytest.approx(g["entropy_bits"].mean().item(), abs=1e-6)
    assert result.standard_error == pytest.approx(g["entropy_bits"].std().item() / math.sqrt(5), abs=1e-6)


def test_entropy_of_ragged_samples_and_of_words():
    assert unigram_entropy([[1, 2, 3, 4], [5, 5], [6, 7]]) == mean_estimate([2, 0, 1], "bits")
    assert unigram_entropy([torch.tensor([1, 2]), torch.tensor([3])]) == mean_estimate([1, 0], "bits")
    assert word_entropy(["a b  c\nd", "a a", ""]) == mean_estimate([2, 0, 0], "bits")


def test_distinct_n_is_the_share_of_new_n_grams_within_a_sample():
    texts = ["a b a b", "a b", "c"]  # pairs: ab ba ab, ab, none
    assert distinct_n(texts, 2) == ratio_estimate([2, 1, 0], [3, 1, 0], "distinct 2-grams")
    assert distinct_n(texts, 1).value == pytest.approx(5 / 7)
    assert distinct_n(torch.tensor([[1, 2, 1, 2], [3, 3, 3, 3]])).value == pytest.approx(3 / 6)


def test_spelling_accuracy_is_the_share_of_known_words():
    vocabulary = vocabulary_of(["the cat sat", "the cat"], min_count=2)
    assert vocabulary == {"the", "cat"}
    expected = ratio_estimate([2, 0, 0], [3, 1, 0], "known words")
    assert spelling_accuracy(["the catt cat", "sat", ""], vocabulary) == expected
    assert expected.value == 0.5


def test_words_are_spelled_the_same_whatever_stands_around_them():
    printed = '"The CAT, sat!"\nDon\'t, über-Katze: 7 cats_dogs…'
    assert vocabulary_of([printed]) == {"the", "cat", "sat", "don", "t", "über", "katze", "cats", "dogs"}
    assert spelling_accuracy([printed], {"The", "cat", "don't", "ÜBER"}).value == 5 / 9


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: unigram_entropy([]), "ids is empty"),
        (lambda: unigram_entropy(torch.tensor([1, 2])), "ids is a single one"),
        (lambda: word_entropy("a b"), "texts is a single one"),
        (lambda: distinct_n(["a b"], 0), "n is 0"),
        (lambda: distinct_n(["a b", "a"], 3), "None of the 2 samples has 3 tokens"),
        (lambda: spelling_accuracy(["", " "], {"a"}), "not a word in the 2 texts"),
        (lambda: spelling_accuracy(["a"], set()), "vocabulary is empty"),
        (lambda: spelling_accuracy(["a"], {"7", "!"}), "not a word in the vocabulary"),
        (lambda: mean_estimate([], "bits"), "0 samples"),
    ],
)
def test_measures_refuse_what_has_no_answer(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mauve_is_left_to_its_package(monkeypatch):
    def compute_mauve(p_text, q_text, **arguments):
        assert (p_text, q_text, arguments) == (["human"] * 3, ["a", "b"], {"verbose": False, "device_id": 1})
        return SimpleNamespace(mauve=0.25)

    monkeypatch.setitem(sys.modules, "mauve", SimpleNamespace(compute_mauve=compute_mauve))
    result = mauve(["a", "b"], ["human"] * 3, device_id=1)
    assert (result.value, result.num_samples, math.isnan(result.standard_error)) == (0.25, 2, True)

    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ImportError, match="pip install mauve-text"):
        mauve(["a", "b"], ["human"] * 3)


def test_samples_that_are_none_are_refused():
    with pytest.raises(ValueError, match="ids is None"):
        unigram_entropy(None)
    with pytest.raises(ValueError, match=r"texts\[0\] is a list, but a text is needed"):
        word_entropy([[3, 4]])
