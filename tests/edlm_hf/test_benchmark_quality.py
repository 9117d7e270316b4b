"""The study of quality: every arm is measured, work is counted, and nothing is measured twice."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from published import randomised, tiny_config, tiny_gpt2
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.benchmarks import quality
from edlm_hf.benchmarks.candidate_profile import add_sums, profile, sums_of_steps
from edlm_hf.benchmarks.parts import Parts
from edlm_hf.benchmarks.quality import QualityStudy, minus_mdlm, run_study
from edlm_hf.benchmarks.quality_arms import forward_flops
from edlm_hf.benchmarks.quality_settings import QualitySettings
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 16
ARMS = ("MDLM", "EDLM-NCE", "EDLM-AR", "EDLM-coAR", "AR")
TINY = {
    "steps": (2, 4),
    "num_candidates": 2,
    "inner_copies": (1, 2),
    "num_texts": 3,
    "noise_samples": 2,
    "num_generated": 4,
    "seeds": (0, 1),
    "batch_size": 3,
}


def write_models(folder, kind: str = "start") -> dict:
    """A denoiser with its tokenizer, an AR model, an NCE composite and a small corpus.

    Args:
        kind: "start": texts begin with a start token, which is context. "no start": only the AR
            model knows one. "wrap": rows begin and end with an end-of-text token that is modelled,
            and the AR model is a GPT-2.
    """
    tokenizer = text8_tokenizer(LENGTH)
    sizes = {"vocab_size": len(tokenizer), "model_length": LENGTH}
    start = {"bos_token_id": tokenizer.bos_token_id}
    start_of_denoiser = start if kind == "start" else {}

    denoiser = randomised(MDLMForMaskedLM(tiny_config(**sizes, **start_of_denoiser)))
    causal = randomised(MDLMForCausalLM(tiny_config(causal=True, **sizes, **start)), seed=1)
    if kind == "wrap":
        tokenizer.eos_token = tokenizer.bos_token
        ends = start | {"eos_token_id": tokenizer.eos_token_id}
        causal = tiny_gpt2(vocab_size=len(tokenizer) + 2, n_positions=LENGTH, **ends)

    composite = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce")
    randomised(composite.energy_model, seed=2)

    for name, model in {"mdlm": denoiser, "ar": causal, "nce": composite}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    choices = ["the", "energy", "of", "a", "word", "is", "not", "its", "spelling"]
    words = np.random.default_rng(0).choice(choices, 200)
    (folder / "books.txt").write_text(" ".join(words))
    return {
        "model": str(folder / "mdlm"),
        "autoregressive": str(folder / "ar"),
        "nce": (str(folder / "nce"),),
        "data": (str(folder / "books.txt"),),
        "vocabulary": str(folder / "books.txt"),
    }


@pytest.fixture(scope="module", params=["start", "no start", "wrap"])
def study(request, tmp_path_factory):
    """Settings, folder, result, and what was said of the progress."""
    folder = tmp_path_factory.mktemp("study")
    settings = QualitySettings(**write_models(folder, request.param), **TINY)
    progress = []
    result = run_study(settings, folder / "out", lambda *said: progress.append(said))
    return settings, folder / "out", result, progress


def bound_of(result: dict, arm: str, steps: int | None, copies: int | None = None) -> dict:
    key = (arm, steps, copies)
    (row,) = [row for row in result["bounds"] if (row["arm"], row["steps"], row["inner_copies"]) == key]
    return row


def samples_of(result: dict, arm: str, steps: int | None) -> dict:
    (row,) = [row for row in result["samples"] if (row["samples"], row["steps"]) == (arm, steps)]
    return row


def test_every_arm_makes_samples_at_every_number_of_steps(study):
    _, _, result, progress = study
    with_steps = [(arm, steps) for arm in ARMS[:-1] for steps in (2, 4)]
    expected = [("data: books", None), *with_steps, ("AR", None)]
    assert [(row["samples"], row["steps"]) for row in result["samples"]] == expected
    assert progress[-1][0] == progress[-1][1]

    for row in result["samples"]:
        assert row["num_samples"] == 8
        for name in ("generative_perplexity", "unigram_entropy", "word_entropy"):
            assert np.isfinite(row[name]["value"]), (row["samples"], name)
            assert row[name]["num_samples"] == 8

    data = result["samples"][0]
    assert 0.5 < data["known_words"]["value"] < 1  # the ends of blocks cut words
    assert data["distinct_2"]["value"] > 0


def test_every_arm_has_its_bounds(study):
    _, _, result, _ = study
    bounds = [(row["arm"], row["steps"], row["inner_copies"]) for row in result["bounds"]]
    energies = [(arm, steps, m) for arm in ARMS[1:4] for steps in (2, 4) for m in (1, 2)]
    mdlm = [("MDLM", 2, None), ("MDLM", 4, None), ("MDLM", None, None)]
    assert bounds == [*mdlm, *energies, ("AR", None, None)]


def test_the_folder_holds_the_results(study):
    _, output, result, _ = study
    stored = json.loads((output / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    names = {"results.json", "results.md", "parts", *result["plots"]}
    assert {path.name for path in output.iterdir()} == names
    assert len(result["plots"]) == 4


def test_bounds_are_those_of_the_functions(study):
    settings, output, result, _ = study
    own = QualityStudy(settings, output)
    rows = own.texts[0].rows(3)
    mdlm = bound_of(result, "MDLM", 4)
    ar = bound_of(result, "AR", None)

    denoiser = MDLMForMaskedLM.from_pretrained(settings.model)
    direct = discrete_nelbo(denoiser, rows, num_steps=4, num_samples=2, seed=0)
    for name in ("value", "standard_error", "num_samples"):
        assert mdlm["nats_per_token"][name] == pytest.approx(getattr(direct, name), rel=1e-6)

    characters = sum(len(text) for text in own.decode(rows))
    bits = direct.bits_per("character", characters).value
    assert mdlm["bits_per_character"]["value"] == pytest.approx(bits)

    assert ar["sequence_tokens"] == mdlm["sequence_tokens"]
    assert ar["minus_mdlm"] is None
    exact = autoregressive_nll(AutoModelForCausalLM.from_pretrained(settings.autoregressive), rows)
    if not own.wraps:  # there it counts no end of text, which is a token to the denoiser
        assert ar["nats_per_token"]["value"] == pytest.approx(exact.value, rel=1e-6)


def test_bounds_of_energies_are_compared_with_mdlm_on_the_same_noise(study):
    _, _, result, _ = study
    mdlm = bound_of(result, "MDLM", 4)
    energy = bound_of(result, "EDLM-AR", 4, copies=1)
    assert energy["minus_mdlm"] == minus_mdlm(energy, [mdlm])

    difference = energy["nats_per_token"]["value"] - mdlm["nats_per_token"]["value"]
    assert energy["minus_mdlm"]["value"] == pytest.approx(difference)


def test_samples_are_complete_text_of_equal_length(study):
    settings, output, _, _ = study
    own = QualityStudy(settings, output)
    start = own.tokenizer.bos_token_id

    for arm, steps in own.arms_and_steps():
        if not arm.causal and steps is None:
            continue
        ids = np.array(own.samples(arm, steps, 0)["ids"])
        assert ids.shape == (4, LENGTH - len(own.prompt))
        assert not (ids == own.tokenizer.mask_token_id).any()

        # Nothing that the denoiser cannot emit, and no second start token unless it is the end of a text
        if arm.causal:
            assert ids.max() < start + own.wraps
            assert not own.wraps or (ids[:, 0] == start).all()


def test_cost_counts_every_call_as_a_whole_forward_pass(study):
    settings, output, result, _ = study
    own = QualityStudy(settings, output)
    row = samples_of(result, "EDLM-AR", 4)
    calls = row["denoiser_calls"]["value"]
    assert calls == row["energy_calls"]["value"]
    assert calls > samples_of(result, "EDLM-AR", 2)["denoiser_calls"]["value"]

    # Two candidates
    flops = calls * own.arms[0].flops + 2 * calls * own.arms[-1].flops
    assert row["gigaflops_per_sample"] == pytest.approx(flops / 1e9)


def test_only_energies_have_a_profile(study):
    _, _, result, _ = study
    steps = samples_of(result, "EDLM-AR", 4)["profile"]
    assert [step["t"] for step in steps] == [1, 0.75, 0.5, 0.25]
    assert all(1 <= step["effective_sample_size"] <= 2 for step in steps)
    assert samples_of(result, "MDLM", 4)["profile"] == []
    assert samples_of(result, "AR", None)["profile"] == []


def test_an_interrupted_study_goes_on_and_repeats_nothing(study, monkeypatch, tmp_path):
    settings, finished, result, _ = study
    output = shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr(quality, "plot", lambda *_: [])
    computed = []

    def count(owner, name):
        own = getattr(owner, name)

        def counted(*arguments):
            computed.append(name)
            return own(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(quality, "generate_samples")
    count(QualityStudy, "score")
    count(QualityStudy, "judge_rows")

    # 1. The same command computes nothing
    stamps = {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    again = run_study(settings, output, lambda *_: None)
    assert not computed
    assert stamps == {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    assert (again["samples"], again["bounds"]) == (result["samples"], result["bounds"])

    # 2. Parts that were lost are computed again, with the same numbers, whatever ran before
    parts = {path: json.loads(path.read_text()) for path in sorted((output / "parts").iterdir())}
    lost = [next(path for path in parts if path.name.startswith("bound"))]
    for path, part in parts.items():
        if path.name.startswith("samples") and part["inputs"]["arm"] in ("AR", "EDLM-AR"):
            lost.append(path)

    for path in lost:
        path.unlink()
    run_study(settings, output, lambda *_: None)
    assert sorted(computed) == ["generate_samples"] * 6 + ["score"]

    for path in lost:
        again = json.loads(path.read_text())["result"] | {"seconds": None}
        assert again == parts[path]["result"] | {"seconds": None}

    # 3. The samples of one seed alone are there, only their quality is new
    computed.clear()
    run_study(dataclasses.replace(settings, seeds=(0,), nce=()), output, lambda *_: None)
    assert set(computed) == {"judge_rows"}


def test_entropy_stands_beside_every_perplexity(study):
    _, output, result, _ = study
    page = (output / "results.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    header = next(line for line in lines if "Gen-PPL" in line)
    assert header[header.index("Gen-PPL") + 1] == "entropy (bits)"

    for row in result["samples"]:
        name = [row["samples"], str(row["steps"] or "-")]
        line = next(line for line in lines if line[:2] == name)
        assert "-" not in line[3:5]

    assert "The judge is the AR model of the study" in page
    assert "m = 2 or none" in page


def test_another_judge_reads_the_texts_anew(tmp_path):
    """The windows of this judge are shorter than the texts."""
    judge = tiny_gpt2(vocab_size=29, n_positions=8, bos_token_id=27, eos_token_id=27)
    judge.save_pretrained(tmp_path / "judge")
    text8_tokenizer(8).save_pretrained(tmp_path / "judge")
    given = write_models(tmp_path) | {"judge": str(tmp_path / "judge")}
    given |= {"nce": (), "autoregressive": None, "vocabulary": None}

    settings = QualitySettings(**given, **TINY | {"steps": (2,)})
    result = run_study(settings, tmp_path / "out", lambda *_: None)
    assert [row["samples"] for row in result["samples"]] == ["data: books", "MDLM"]
    for row in result["samples"]:
        assert row["generative_perplexity"]["value"] > 1
        assert row["known_words"] is None
    assert set(result["plots"]) == {"quality_entropy.png", "quality_cost.png", "bound.png"}
    assert f"Gen-PPL under {given['judge']}." in (tmp_path / "out" / "results.md").read_text()


def test_flops_are_those_of_the_specification():
    assert forward_flops(MDLMConfig(), 1024) == pytest.approx(292e9, rel=2e-3)


def test_flops_count_the_linear_layers_and_the_attention():
    config = MDLMConfig(vocab_size=28, hidden_dim=64, n_blocks=2, n_heads=2)
    model = MDLMForCausalLM(dataclasses.replace(config, causal=True))
    length = 8
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))

    # Queries with keys and weights with values: two products of width 64 in each of two blocks
    pairs = length * (length + 1) / 2
    attention = 2 * 2 * 2 * 64 * pairs
    assert forward_flops(config, length, causal=True) == 2 * length * weights + attention


def test_profile_counts_only_steps_with_candidates():
    nan = torch.nan
    # (T, B, k) = (3, 2, 2): at the first step one row has candidates, at the second none, at the third both
    energies = torch.tensor(
        [
            [[0.0, 2.0], [nan, nan]],
            [[nan, nan], [nan, nan]],
            [[1.0, 1.0], [0.0, 4.0]],
        ]
    )
    sizes = torch.tensor([[1.5, nan], [nan, nan], [2.0, 1.0]])
    output = EDLMGenerationOutput(energies=energies, effective_sample_size=sizes)

    first, last = profile(add_sums([sums_of_steps(output), None, sums_of_steps(output)]))
    assert (first["t"], first["num_samples"], first["effective_sample_size"]) == (1, 2, 1.5)
    assert last["t"] == pytest.approx(1 / 3)
    assert (last["num_samples"], last["effective_sample_size"]) == (4, 1.5)
    assert last["standard_error"] == pytest.approx(np.std([2, 1, 2, 1], ddof=1) / 2)
    assert last["energy_sd"] == pytest.approx(np.std([0, 4], ddof=1) / 2)


def test_parts_are_found_by_what_they_depend_on(tmp_path):
    parts, calls = Parts(tmp_path), []

    def compute():
        calls.append(1)
        return {"value": float("nan"), "count": len(calls)}

    assert parts("x", {"a": 1, "b": (2,)}, compute) == {"value": None, "count": 1}
    assert Parts(tmp_path)("x", {"b": [2], "a": 1}, compute) == {"value": None, "count": 1}
    assert parts("x", {"a": 2, "b": (2,)}, compute)["count"] == 2


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"steps": ()}, "steps is empty"),
        ({"steps": (0,)}, "must be positive"),
        ({"steps": (4, 4)}, "only once"),
        ({"num_candidates": 1}, "at least 2"),
        ({"window": 0.0}, r"\(0, 1\]"),
        ({"noise_samples": 3}, "1 or even"),
        ({"num_generated": 1}, "at least 2 samples"),
        ({"data": ("a/x.txt", "b/x.txt")}, "same name"),
        ({"device": "abacus"}, "There is no device"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        QualitySettings(**{"model": "m", "data": ("text8",)} | change)


def test_networks_that_do_not_fit_are_refused(tmp_path):
    given = write_models(tmp_path)
    with pytest.raises(ValueError, match="Nothing judges"):
        QualityStudy(QualitySettings(**given | {"autoregressive": None}), tmp_path / "out")
    with pytest.raises(ValueError, match="give one"):
        QualityStudy(QualitySettings(**given | {"nce": given["nce"] * 2}), tmp_path / "out")

    denoiser = randomised(MDLMForMaskedLM.from_pretrained(given["model"]), seed=5)
    other = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another denoiser"):
        QualityStudy(QualitySettings(**given | {"nce": (str(tmp_path / "other"),)}), tmp_path / "out")


def test_an_autoregressive_model_needs_a_start_token(tmp_path):
    given = write_models(tmp_path, "no start")
    causal = AutoModelForCausalLM.from_pretrained(given["autoregressive"])
    causal.config.bos_token_id = None
    causal.save_pretrained(given["autoregressive"])
    with pytest.raises(ValueError, match="no start token"):
        QualityStudy(QualitySettings(**given), tmp_path / "out")


def test_command_writes_and_prints(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given = write_models(tmp_path)
    options = ["--model", given["nce"][0], "--autoregressive", given["autoregressive"]]
    options += ["--dataset", given["data"][0], "--device", "cpu", "--json"]
    small = [
        "--quick",
        "--max-denoising-steps",
        "2",
        "--num-return-sequences",
        "2",
        "--num-texts",
        "2",
        "--inner-copies",
        "1",
    ]
    command = ["benchmark", "quality", "--output", str(tmp_path / "out"), *options, *small]

    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    arms = [row["samples"] for row in json.loads(result.stdout)["samples"]]
    assert arms == ["data: books", *ARMS]  # a composite brings its own energy
    assert "matplotlib" in result.stderr
    assert not list((tmp_path / "out").glob("*.png"))

    refused = CliRunner().invoke(app, [*command, "--num-candidates", "1"])
    assert refused.exit_code == 1
    assert "at least 2" in refused.output
