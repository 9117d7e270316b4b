"""The study of samplers: differences are paired, nothing is measured twice, and every rule is called as it is named."""

import json
import math
import shutil

import numpy as np
import pytest
from published import randomised, tiny_config
from typer.testing import CliRunner

from edlm_hf import MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.benchmarks.samplers import SAMPLERS, SamplerSettings, SamplerStudy, arms_of, run_samplers
from edlm_hf.benchmarks.samplers_report import markdown, worth
from edlm_hf.cli import app
from edlm_hf.evaluation import nelbo, sampler_bound
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 16

RULES = ("ancestral @2,4", "first_hitting", "spaced distance=4 score=entropy @4", "threshold threshold=0.5")
TINY = {"samplers": RULES, "num_texts": 5, "noise_samples": 2, "num_generated": 4, "batch_size": 3}


def write_models(folder) -> dict:
    """A denoiser with its tokenizer, an AR model and a small corpus, whose texts begin with a start token."""
    tokenizer = text8_tokenizer(LENGTH)
    sizes = {"vocab_size": len(tokenizer), "model_length": LENGTH, "bos_token_id": tokenizer.bos_token_id}
    models = {"mdlm": MDLMForMaskedLM(tiny_config(**sizes)), "ar": MDLMForCausalLM(tiny_config(causal=True, **sizes))}
    for seed, (name, model) in enumerate(models.items()):
        randomised(model, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = np.random.default_rng(0).choice(["the", "energy", "of", "a", "word", "is", "not", "its", "spelling"], 200)
    corpus = folder / "books.txt"
    corpus.write_text(" ".join(words))
    return {
        "model": str(folder / "mdlm"),
        "autoregressive": str(folder / "ar"),
        "data": (str(corpus),),
        "vocabulary": str(corpus),
    }


def settings_of(given: dict, **changes) -> SamplerSettings:
    names = ("model", "data", "autoregressive", "vocabulary")
    return SamplerSettings(**{name: given[name] for name in names} | TINY | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samplers")
    settings = settings_of(write_models(folder))
    seen = []
    result = run_samplers(settings, folder / "out", lambda *progress: seen.append(progress))
    return settings, folder / "out", result, seen


def test_every_sampler_is_measured(study):
    _, output, result, seen = study
    expected = [("ancestral", 2), ("ancestral", 4), ("first_hitting", None)]
    expected += [("spaced distance=4 score=entropy", 4), ("threshold threshold=0.5", None)]
    assert [(row["rule"], row["steps"]) for row in result["bounds"]] == expected
    assert [(row["rule"], row["steps"]) for row in result["samples"]] == [("text: books", None), *expected]
    assert seen[-1][0] == seen[-1][1] == 10

    for row in result["samples"][1:]:
        assert row["num_samples"] == 4 and row["seconds_per_sample"] > 0
        assert all(np.isfinite(row[name]["value"]) for name in ("judge_bits", "known_words", "unigram_entropy"))
    calls = {row["rule"]: row["calls"]["value"] for row in result["samples"][1:]}
    assert calls["first_hitting"] == LENGTH - 1 and calls["spaced distance=4 score=entropy"] == 4
    stored = json.loads((output / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert {path.name for path in output.iterdir()} == {"results.json", "results.md", "parts", *result["plots"]}


def test_bounds_are_those_of_the_functions(study):
    settings, output, result, _ = study
    rows = SamplerStudy(settings, output).texts[0].rows(5)
    model = MDLMForMaskedLM.from_pretrained(settings.model)
    noise = {"num_samples": 2, "seed": 0}
    found = {(row["rule"], row["steps"]): row["sequence_nats"] for row in result["bounds"]}
    spaced = sampler_bound(model, rows, sampler="spaced", distance=4, score="entropy", num_steps=4, **noise)
    assert found["spaced distance=4 score=entropy", 4] == pytest.approx(spaced.sequence_nats, rel=1e-5)
    assert found["first_hitting", None] == pytest.approx(nelbo(model, rows, **noise).sequence_nats, rel=1e-5)


def test_differences_are_paired_text_by_text(study):
    _, _, result, _ = study
    ancestral, spaced = result["bounds"][1], result["bounds"][3]
    pair = next(pair["difference"] for pair in spaced["minus_ancestral"] if pair["steps"] == 4)
    of_texts = np.array(spaced["sequence_nats"]) - np.array(ancestral["sequence_nats"])
    of_texts = of_texts / math.log(2) / (LENGTH - 1)
    assert pair["value"] == pytest.approx(of_texts.mean())
    assert pair["standard_error"] == pytest.approx(of_texts.std(ddof=1) / math.sqrt(5))
    assert [pair["steps"] for pair in ancestral["minus_ancestral"]] == [2, None]


def test_the_study_goes_on_where_it_stopped(study, monkeypatch, tmp_path):
    settings, finished, result, _ = study
    output = shutil.copytree(finished, tmp_path / "study")
    counted = []
    for name in ("score", "generate", "judge"):
        own = getattr(SamplerStudy, name)
        monkeypatch.setattr(SamplerStudy, name, lambda *given, own=own: (counted.append(given[1]), own(*given))[1])
    again = run_samplers(settings, output, lambda *_: None)
    assert not counted and again["bounds"] == result["bounds"] and again["samples"] == result["samples"]

    more = settings_of(vars(settings), samplers=(*RULES, "dilated @4"), sampled=("dilated @4",))
    again = run_samplers(more, output, lambda *_: None)
    assert len(counted) == 3 and again["bounds"][:3] == [
        row | {"minus_ancestral": new["minus_ancestral"]}
        for row, new in zip(result["bounds"][:3], again["bounds"], strict=False)
    ]
    assert [row["rule"] for row in again["samples"]] == ["text: books", "dilated"]


def test_worth_is_the_smallest_number_of_steps_with_that_bound():
    def row(*differences):
        steps = (2, 8, 64, None)
        pairs = [{"steps": T, "difference": {"value": x}} for T, x in zip(steps, differences, strict=True)]
        return {"rule": "spaced", "minus_ancestral": pairs}

    assert worth(row(-0.2, 0.01, 0.1, 0.2)) == "8"
    assert worth(row(-0.3, -0.2, -0.1, 0.0)) == "∞"
    assert worth(row(-0.3, -0.2, -0.1, -0.05)) == "more than ∞"


def test_page_names_what_was_run(study):
    _, _, result, _ = study
    page = markdown(result)
    assert "| books | spaced distance=4 score=entropy | 4 | 5 |" in page and "| books | first_hitting | ∞ |" in page


def test_samplers_are_read_from_one_line():
    (arm,) = arms_of("spaced distance=8 score=entropy @16", (4,))
    assert arm.options("num_steps") == {
        "sampler": "spaced", "num_candidates": 1, "distance": 8, "score": "entropy", "num_steps": 16
    }  # fmt: skip
    assert [arm.steps for arm in arms_of("klass", (4, 8))] == [4, 8]
    assert [arm.steps for arm in arms_of("threshold", (4, 8))] == [None]  # T plays no part
    assert [arm.steps for arm in arms_of("threshold fill_up=true", (4, 8))] == [4, 8]
    assert all(arms_of(text, (4,)) for text in SAMPLERS)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"samplers": ("spaced distance",)}, "is not a sampler like"),
        ({"samplers": ("spaced @some",)}, "numbers of steps like @8,16"),
        ({"samplers": ("spaced @0",)}, "must be positive"),
        ({"samplers": ("magic",)}, "one of ancestral"),
        ({"samplers": ("dilated gamma=1",)}, "has no gamma"),
        ({"samplers": ("dilated @4", "dilated @4,8")}, "more than once"),
        ({"sampled": ("dilated @8",)}, "stand in samplers too"),
        ({"num_generated": 1}, "0, or 2 and more"),
        ({"num_texts": 0}, "must be positive"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        SamplerSettings("m", ("text8",), "ar", **TINY | change)


def test_command_writes_and_prints(tmp_path):
    given = write_models(tmp_path)
    options = ["--model", given["model"], "--autoregressive", given["autoregressive"], "--data", given["data"][0]]
    small = ["--quick", "--texts", "2", "--samples", "0", "--sampler", "dilated @2", "--device", "cpu", "--json"]
    command = ["benchmark", "samplers", "--output", str(tmp_path / "out"), *options, *small]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["bounds"]
    assert (row["rule"], row["steps"], row["minus_ancestral"]) == ("dilated", 2, [])
    refused = CliRunner().invoke(app, [*command, "--sampler", "magic"])
    assert refused.exit_code == 1 and "must be one of" in refused.output
