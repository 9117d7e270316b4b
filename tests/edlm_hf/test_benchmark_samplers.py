"""The study of samplers: differences are paired, and nothing is measured twice."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from published import randomised, tiny_config
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.benchmarks.parts import digest_of_source
from edlm_hf.benchmarks.samplers import SamplerStudy, run_samplers
from edlm_hf.benchmarks.samplers_report import markdown, worth
from edlm_hf.benchmarks.samplers_settings import SAMPLERS, SamplerSettings, arms_of_line
from edlm_hf.benchmarks.tables import signed, three_digits
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, nelbo, sampler_bound
from edlm_hf.markdown import code_span
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 16

RULES = (
    "ancestral @2,4",
    "first_hitting",
    "spaced distance=4 score=entropy @4",
    "threshold threshold=0.5",
)
ARMS = [
    ("ancestral", 2),
    ("ancestral", 4),
    ("first_hitting", None),
    ("spaced distance=4 score=entropy", 4),
    ("threshold threshold=0.5", None),
]
TINY = {"samplers": RULES, "num_texts": 5, "noise_samples": 2, "num_generated": 4, "batch_size": 3}


def write_models(folder) -> dict:
    """A denoiser with its tokenizer, an AR model, and a corpus whose texts have a start token."""
    tokenizer = text8_tokenizer(LENGTH)
    sizes = {
        "vocab_size": len(tokenizer),
        "model_length": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
    }
    models = {
        "mdlm": MDLMForMaskedLM(tiny_config(**sizes)),
        "ar": MDLMForCausalLM(tiny_config(causal=True, **sizes)),
    }
    for seed, (name, model) in enumerate(models.items()):
        randomised(model, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    choices = ["the", "energy", "of", "a", "word", "is", "not", "its", "spelling"]
    words = np.random.default_rng(0).choice(choices, 200)
    corpus = folder / "books.txt"
    corpus.write_text(" ".join(words))
    return {
        "model": str(folder / "mdlm"),
        "autoregressive": str(folder / "ar"),
        "data": (str(corpus),),
        "vocabulary": str(corpus),
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Settings, folder, result, and what was said of the progress."""
    folder = tmp_path_factory.mktemp("samplers")
    settings = SamplerSettings(**write_models(folder), **TINY)
    progress = []
    result = run_samplers(settings, folder / "out", lambda *said: progress.append(said))
    return settings, folder / "out", result, progress


def samplers_of(rows: list[dict]) -> list[tuple]:
    return [(row["rule"], row["steps"]) for row in rows]


def test_every_sampler_is_measured(study):
    _, output, result, progress = study
    assert samplers_of(result["bounds"]) == ARMS
    assert samplers_of(result["samples"]) == [("text: books", None), *ARMS]
    assert progress[-1][0] == progress[-1][1] == 10

    for row in result["samples"][1:]:
        assert row["num_samples"] == 4
        assert row["seconds_per_sample"] > 0
        for name in ("judge_bits", "known_words", "unigram_entropy", "distinct_2"):
            assert np.isfinite(row[name]["value"])
        assert len(row["texts"]) == 4

    calls = {row["rule"]: row["calls"]["value"] for row in result["samples"][1:]}
    assert calls["first_hitting"] == LENGTH - 1
    assert calls["spaced distance=4 score=entropy"] == 4

    stored = json.loads((output / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    files = {path.name for path in output.iterdir()}
    assert files == {"results.json", "results.md", "parts", *result["plots"]}


def test_bounds_are_those_of_the_functions(study):
    settings, output, result, _ = study
    rows = SamplerStudy(settings, output).texts[0].rows(5)
    model = MDLMForMaskedLM.from_pretrained(settings.model)
    noise = {"num_samples": 2, "seed": 0}
    nats = {(row["rule"], row["steps"]): row["sequence_nats"] for row in result["bounds"]}

    spaced = sampler_bound(model, rows, sampler="spaced", distance=4, score="entropy", num_steps=4, **noise)
    assert nats["spaced distance=4 score=entropy", 4] == pytest.approx(spaced.sequence_nats, rel=1e-5)

    limit = nelbo(model, rows, **noise)
    assert nats["first_hitting", None] == pytest.approx(limit.sequence_nats, rel=1e-5)


def test_differences_are_paired_text_by_text(study):
    _, _, result, _ = study
    ancestral, spaced = result["bounds"][1], result["bounds"][3]
    (pair,) = [pair["difference"] for pair in spaced["minus_ancestral"] if pair["steps"] == 4]

    nats = np.array(spaced["sequence_nats"]) - np.array(ancestral["sequence_nats"])
    bits_per_character = nats / math.log(2) / (LENGTH - 1)
    assert pair["value"] == pytest.approx(bits_per_character.mean())
    assert pair["standard_error"] == pytest.approx(bits_per_character.std(ddof=1) / math.sqrt(5))
    assert [pair["steps"] for pair in ancestral["minus_ancestral"]] == [2, None]


def test_the_study_goes_on_where_it_stopped(study, monkeypatch, tmp_path):
    settings, finished, result, _ = study
    output = shutil.copytree(finished, tmp_path / "study")

    computed = []
    for name in ("score", "draw_samples", "judge_rows"):
        own = getattr(SamplerStudy, name)

        def counted(*arguments, own=own, name=name):
            computed.append(name)
            return own(*arguments)

        monkeypatch.setattr(SamplerStudy, name, counted)

    # 1. The same command computes nothing
    again = run_samplers(settings, output, lambda *_: None)
    assert not computed
    assert again["bounds"] == result["bounds"]
    assert again["samples"] == result["samples"]

    # 2. One more sampler is computed alone
    changes = {"samplers": (*RULES, "dilated @4"), "sampled": ("dilated @4",)}
    more = SamplerSettings(**vars(settings) | changes)
    again = run_samplers(more, output, lambda *_: None)

    assert sorted(computed) == ["draw_samples", "judge_rows", "score"]
    assert [row["rule"] for row in again["samples"]] == ["text: books", "dilated"]
    for row, before in zip(again["bounds"], result["bounds"], strict=False):
        assert row["sequence_nats"] == before["sequence_nats"]


def test_a_bound_depends_on_these_inputs_alone(study):
    """Another name or value here makes every long study start anew."""
    _, output, _, _ = study
    names = {"version", "weights", "length", "sampler", "parameters", "steps", "seed", "dtype", "rows", "noise_samples"}
    parts = [json.loads(path.read_text()) for path in output.glob("parts/bound-*")]
    assert len(parts) == len(ARMS)
    for part in parts:
        assert set(part["inputs"]) == names
        assert part["inputs"]["weights"][1] == '["loglinear", null]'


def test_worth_is_the_smallest_number_of_steps_with_that_bound():
    def row(*differences):
        pairs = []
        for steps, value in zip((2, 8, 64, None), differences, strict=True):
            pairs.append({"steps": steps, "difference": {"value": value}})
        return {"rule": "spaced", "minus_ancestral": pairs}

    assert worth(row(-0.2, 0.01, 0.1, 0.2)) == "8"
    assert worth(row(-0.3, -0.2, -0.1, 0.0)) == "∞"
    assert worth(row(-0.3, -0.2, -0.1, -0.05)) == "more than ∞"


def test_page_names_what_was_run(study):
    _, _, result, _ = study
    page = markdown(result)
    assert "| books | spaced distance=4 score=entropy | 4 | 5 |" in page
    assert "| books | first_hitting | ∞ |" in page
    texts = result["samples"][0]["texts"]
    assert len(texts) == 4 and all(f"> {code_span(text)}" in page for text in texts)


def test_energies_and_the_autoregressive_model_stand_beside_the_rules(tmp_path):
    lines = ("ancestral @2", "spaced energy=ar candidates=2 @2", "speculative draft_length=2", "autoregressive")
    settings = SamplerSettings(
        **write_models(tmp_path),
        **TINY | {"samplers": lines, "inner_copies": 2},
    )
    result = run_samplers(settings, tmp_path / "out", lambda *said: None)
    rules = ["ancestral", "spaced energy=ar candidates=2", "speculative draft_length=2", "autoregressive"]
    assert [row["rule"] for row in result["bounds"]] == rules

    bounds = {row["rule"]: row["sequence_nats"] for row in result["bounds"]}
    calls = {row["rule"]: (row["calls"]["value"], row["energy_calls"]["value"]) for row in result["samples"][1:]}

    # Both draw from the AR model: one likelihood, and the latter has one call a token
    rows = SamplerStudy(settings, tmp_path / "out").texts[0].rows(5)
    causal = MDLMForCausalLM.from_pretrained(settings.autoregressive)
    exact = autoregressive_nll(causal, rows).sequence_nats
    assert bounds["speculative draft_length=2"] == pytest.approx(exact, rel=1e-5) == bounds["autoregressive"]
    assert calls["autoregressive"] == (LENGTH - 1, 0)
    assert calls["speculative draft_length=2"][0] < LENGTH - 1

    composite = EDLMForMaskedDiffusion.from_components(
        MDLMForMaskedLM.from_pretrained(settings.model),
        causal,
    )
    options = {"num_steps": 2, "num_samples": 2, "seed": 0, "batch_size": 3}
    weighed = sampler_bound(
        composite,
        rows,
        sampler="spaced",
        num_candidates=2,
        inner_copies=2,
        **options,
    )
    assert bounds["spaced energy=ar candidates=2"] == pytest.approx(weighed.sequence_nats, rel=1e-5)
    assert calls["spaced energy=ar candidates=2"] == (2, 2)

    # Without m, arms with an energy have samples alone
    without = dataclasses.replace(settings, inner_copies=None)
    assert [arm.rule for arm in without.bounded_arms()] == [rules[0], *rules[2:]]


@pytest.mark.parametrize(
    "line,message",
    [
        ("spaced energy=bert @2", "must be ar or nce"),
        ("spaced candidates=4 @2", "nothing weighs them"),
        ("spaced energy=ar candidates=1", "weighs 2 or more"),
        ("autoregressive energy=ar", "draws from the AR model itself"),
        ("autoregressive distance=1", "sampled as it is"),
        ("autoregressive temperature=1", "leave out the temperature"),
        ("speculative temperature=0.9", "leave out the temperature"),
        ("spaced temperature=0 @2", "must be a positive number"),
        ("spaced temperature=low @2", "must be a positive number"),
        ("spaced temperature=true @2", "must be a positive number"),
        ("spaced energy=nce @2", "no energy 'nce'"),
    ],
)
def test_lines_that_say_nothing_right_are_refused(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SamplerStudy(SamplerSettings(**write_models(tmp_path), samplers=(line,)), tmp_path)


def test_samplers_are_read_from_one_line():
    (arm,) = arms_of_line("spaced distance=8 score=entropy @16", (4,))
    parameters = {"sampler": "spaced", "num_candidates": 1, "distance": 8, "score": "entropy"}
    assert arm.options("num_steps") == parameters | {"num_steps": 16}
    assert all(arms_of_line(line, (4,)) for line in SAMPLERS)

    # The temperature goes to generate() and to the bound
    (arm,) = arms_of_line("spaced temperature=0.9 @16", (4,))
    expected = {"sampler": "spaced", "num_candidates": 1, "temperature": 0.9}
    assert arm.options("max_denoising_steps") == expected | {"max_denoising_steps": 16}


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("klass", [4, 8]),
        ("threshold", [None]),  # T plays no part
        ("threshold fill_up=true", [4, 8]),
    ],
)
def test_samplers_run_at_every_number_of_steps_that_matters(line, steps):
    assert [arm.steps for arm in arms_of_line(line, (4, 8))] == steps


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
        ({"steps": (4, 4)}, "only once"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        SamplerSettings("m", ("text8",), "ar", **TINY | change)


def test_a_judge_is_required():
    with pytest.raises(TypeError, match="autoregressive"):
        SamplerSettings("m", ("text8",))


def test_command_writes_and_prints(tmp_path):
    given = write_models(tmp_path)
    options = ["--model", given["model"], "--autoregressive", given["autoregressive"]]
    options += ["--dataset", given["data"][0], "--device", "cpu", "--json"]
    small = ["--quick", "--num-texts", "2", "--num-return-sequences", "0", "--sampler", "dilated @2"]
    command = ["benchmark", "samplers", "--output", str(tmp_path / "out"), *options, *small]

    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["bounds"]
    assert (row["rule"], row["steps"], row["minus_ancestral"]) == ("dilated", 2, [])

    refused = CliRunner().invoke(app, [*command, "--sampler", "magic"])
    assert refused.exit_code == 1
    assert "must be one of" in refused.output


def test_a_changed_vocabulary_is_read_again_and_a_moved_one_is_not(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("day night")
    first = digest_of_source(str(words))

    words.write_text("day sun")
    assert digest_of_source(str(words)) != first

    # The place does not matter, and names on the Hub are what they are
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "words.txt").write_text("day night")
    assert digest_of_source(str(tmp_path / "elsewhere" / "words.txt")) == first
    assert digest_of_source("owner/words") == "owner/words"


def test_a_table_of_one_text_has_no_standard_error():
    stored = {"value": 1.5, "standard_error": None, "num_samples": 1, "unit": "bits"}
    assert three_digits("bits")({"bits": stored}) == "1.500 ± nan"
    assert signed(stored) == "+1.500 ± nan"
