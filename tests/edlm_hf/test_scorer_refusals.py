"""Options and requests of an evaluation harness that cannot be answered are refused."""

import pytest
from scorers import letters, tiny_scorer
from transformers.utils.logging import warning_once

from edlm_hf.evaluation.scorer import EDLMScorer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": "elbo"}, "bound is 'elbo', but it must be one of nelbo, discrete, sampler"),
        ({"batch_size": "auto"}, "batch_size is 'auto', but it must be a positive integer"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 13}, "max_length is 13, but it must be from 2 to 12"),
        ({"max_length": 1}, "max_length is 1"),
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"candidates": 4}, "does not know candidates"),
    ],
)
def test_options_that_are_not_allowed_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_scorer(**options)


def test_a_tokenizer_of_another_mask_is_refused():
    scorer = tiny_scorer()
    with pytest.raises(ValueError, match="masks with id 28"):
        EDLMScorer(scorer.model, letters())


def test_requests_that_cannot_be_answered_are_refused():
    scorer = tiny_scorer(num_samples=3)
    with pytest.raises(ValueError, match="num_samples is 3"):
        scorer.loglikelihood([("a", "b")])
    with pytest.raises(ValueError, match="holds the mask token"):
        scorer.loglikelihood([("a[MASK]", "b")])
    with pytest.raises(ValueError, match="does not know beams"):
        scorer.generate_until([("a", {"beams": 2})])


def test_an_energy_that_takes_no_part_is_told(caplog):
    warning_once.cache_clear()
    tiny_scorer(energy=True)
    assert "bound=nelbo is that of the denoiser alone" in caplog.text
    caplog.clear()
    scorer = tiny_scorer(energy=True, bound="sampler")
    assert not caplog.records
    scorer.generate_until([("a", {"max_gen_toks": 2})])
    assert "Greedy generation weighs no candidates" in caplog.text
