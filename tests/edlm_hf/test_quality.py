"""Reports about samples, and the estimates with standard errors that they print."""

import json
import math

import pytest
import torch
from judged_texts import as_text, judged, numbers_tokenizer
from published import tiny_gpt2

from edlm_hf.evaluation.estimate import Estimate, mean_estimate, ratio_estimate
from edlm_hf.evaluation.quality import markdown_table, sample_report
from edlm_hf.evaluation.text_statistics import unigram_entropy


def test_estimates_print_value_error_unit_and_number():
    assert str(Estimate(1.7318, 0.0042, 512, "nats/token")) == "1.732 ± 0.004 nats/token (n=512)"
    assert str(Estimate(66.81, 3.2, 64, "perplexity")) == "67 ± 3 perplexity (n=64)"
    assert str(Estimate(128.0, 0.0, 2, "calls")) == "128 ± 0 calls (n=2)"
    assert str(mean_estimate([1.5], "bits")) == "1.5 ± nan bits (n=1)"


def test_the_ratio_has_the_standard_error_it_states():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 20, (4000, 64), generator=generator).double()
    y = 2 * x + x.sqrt() * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    results = [ratio_estimate(*pair, "") for pair in zip(y, x, strict=True)]
    values, errors = (torch.tensor([getattr(r, name) for r in results]) for name in ("value", "standard_error"))
    assert values.mean().item() == pytest.approx(2, abs=5 * values.std().item() / math.sqrt(4000))
    assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.05)


def test_a_report_gives_entropy_number_and_both_networks_calls_beside_perplexity():
    rows = [[1, 2, 3, 1], [4, 5, 4, 4]]
    texts = [as_text(row) for row in rows]
    report = sample_report(
        texts,
        torch.tensor(rows),
        judge=tiny_gpt2(),
        tokenizer=numbers_tokenizer(),
        vocabulary={"w1", "w2", "w4"},
        denoiser_calls=torch.tensor([3, 4]),
        energy_calls=[0, 0],
        seconds=5.0,
    )
    assert report.generative_perplexity == judged(rows)
    assert report.unigram_entropy == unigram_entropy(rows)
    assert report.spelling_accuracy.value == 6 / 8
    assert (report.num_samples, report.seconds_per_sample) == (2, 2.5)
    assert json.loads(json.dumps(report.to_dict()))["denoiser_calls"]["value"] == 3.5

    plain = sample_report(
        texts,
        rows,
        judge=None,
        denoiser_calls=[1, 1],
        energy_calls=[2, 2],
        seconds=1,
    )
    header, line, first, second = markdown_table({"T = 4": report, "plain": plain}).splitlines()
    assert header == (
        "| samples | n | Gen-PPL | entropy (bits) | word entropy (bits) | known words | denoiser calls | energy calls "
        "| seconds |"
    )
    assert line == "|" + " --- |" * 9

    perplexity = judged(rows).rounded()
    assert first == f"| T = 4 | 2 | {perplexity} | 1.2 ± 0.3 | 1.2 ± 0.3 | 0.75 ± 0 | 3.5 ± 0.5 | 0 ± 0 | 2.5 |"
    assert second == "| plain | 2 | - | 1.2 ± 0.3 | 1.2 ± 0.3 | - | 1 ± 0 | 2 ± 0 | 0.5 |"


def test_a_report_is_about_one_set_of_samples():
    with pytest.raises(ValueError, match="one per sample, but their lengths are .*'denoiser_calls': 1"):
        sample_report(
            ["a", "b"],
            [[1], [2]],
            judge=None,
            denoiser_calls=[1],
            energy_calls=[0, 0],
            seconds=1,
        )
