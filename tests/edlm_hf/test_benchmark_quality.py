"""The study of quality: every arm is measured, equal work is counted right, and nothing is measured twice."""

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
from edlm_hf.benchmarks.quality import QualitySettings, Study, forward_flops, minus_mdlm, run_study, step_sums
from edlm_hf.benchmarks.report import Parts
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, discrete_nelbo
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 16
ARMS = ("MDLM", "EDLM-NCE", "EDLM-AR", "EDLM-coAR", "AR")
TINY = {"steps": (2, 4), "num_candidates": 2, "inner_copies": (1, 2), "num_texts": 3, "noise_samples": 2}
TINY |= {"num_generated": 4, "seeds": (0, 1), "batch_size": 3}


def write_models(folder, kind: str = "start"):
    """A denoiser with its tokenizer, an AR model, an NCE composite and a small corpus.

    Args:
        kind: "start": texts begin with a start token, which is context. "no start": only the AR model knows one.
            "wrap": rows begin and end with an end-of-text token that is modelled; the AR model is a GPT-2.
    """
    tokenizer = text8_tokenizer(LENGTH)
    sizes = {"vocab_size": len(tokenizer), "model_length": LENGTH}
    start = {"bos_token_id": tokenizer.bos_token_id}
    denoiser = randomised(MDLMForMaskedLM(tiny_config(**sizes, **(start if kind == "start" else {}))))
    causal = randomised(MDLMForCausalLM(tiny_config(causal=True, **sizes, **start)), seed=1)
    if kind == "wrap":
        tokenizer.eos_token = tokenizer.bos_token
        start["eos_token_id"] = tokenizer.eos_token_id
        causal = tiny_gpt2(vocab_size=len(tokenizer) + 2, n_positions=LENGTH, **start)
    composite = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce")
    randomised(composite.energy_model, seed=2)
    for name, model in {"mdlm": denoiser, "ar": causal, "nce": composite}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = np.random.default_rng(0).choice(["the", "energy", "of", "a", "word", "is", "not", "its", "spelling"], 200)
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
    folder = tmp_path_factory.mktemp("study")
    settings = QualitySettings(**write_models(folder, request.param), **TINY)
    seen = []
    return settings, folder / "out", run_study(settings, folder / "out", lambda *told: seen.append(told)), seen


def test_every_arm_is_measured_at_every_number_of_steps(study):
    _, output, result, seen = study
    expected = [("data: books", None)] + [(arm, steps) for arm in ARMS[:-1] for steps in (2, 4)] + [("AR", None)]
    assert [(row["samples"], row["steps"]) for row in result["samples"]] == expected
    assert seen[-1][0] == seen[-1][1]
    for row in result["samples"]:
        assert row["num_samples"] == 8
        for name in ("generative_perplexity", "unigram_entropy", "word_entropy"):
            assert np.isfinite(row[name]["value"]) and row[name]["num_samples"] == 8, (row["samples"], name)
    assert 0.5 < result["samples"][0]["known_words"]["value"] < 1  # the ends of blocks cut words
    assert result["samples"][0]["distinct_2"]["value"] > 0
    bounds = [(row["arm"], row["steps"], row["inner_copies"]) for row in result["bounds"]]
    weighed = [(arm, steps, m) for arm in ARMS[1:4] for steps in (2, 4) for m in (1, 2)]
    assert bounds == [("MDLM", 2, None), ("MDLM", 4, None), ("MDLM", None, None), *weighed, ("AR", None, None)]
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(result))
    names = {"results.json", "results.md", "parts", *result["plots"]}
    assert {path.name for path in output.iterdir()} == names and len(names) == 7


def test_bounds_are_those_of_the_functions(study):
    settings, output, result, _ = study
    found = {(row["arm"], row["steps"]): row for row in result["bounds"] if row["inner_copies"] is None}
    parts = Study(settings, output)
    rows = parts.texts[0].rows(3)
    own = discrete_nelbo(MDLMForMaskedLM.from_pretrained(settings.model), rows, num_steps=4, num_samples=2, seed=0)
    for name in ("value", "standard_error", "num_samples"):
        assert found["MDLM", 4]["nats_per_token"][name] == pytest.approx(getattr(own, name), rel=1e-6)
    assert found["AR", None]["sequence_tokens"] == found["MDLM", 4]["sequence_tokens"]
    exact = autoregressive_nll(AutoModelForCausalLM.from_pretrained(settings.autoregressive), rows)
    if not parts.wraps:  # there it counts no end of text, which is a token to the denoiser
        assert found["AR", None]["nats_per_token"]["value"] == pytest.approx(exact.value, rel=1e-6)
    characters = sum(len(text) for text in parts.decode(rows))
    assert found["MDLM", 4]["bits_per_character"]["value"] == pytest.approx(own.bits_per("x", characters).value)
    # the error of a paired difference is not that of two independent bounds
    weighed = next(row for row in result["bounds"] if (row["arm"], row["steps"]) == ("EDLM-AR", 4))
    assert weighed["minus_mdlm"] == minus_mdlm([found["MDLM", 4], weighed])
    difference = weighed["nats_per_token"]["value"] - found["MDLM", 4]["nats_per_token"]["value"]
    assert weighed["minus_mdlm"]["value"] == pytest.approx(difference)
    assert found["AR", None]["minus_mdlm"] is None


def test_samples_are_complete_text_of_equal_length(study):
    settings, output, result, _ = study
    parts = Study(settings, output)
    for arm, steps in parts.points():
        if arm.causal or steps is not None:
            ids = np.array(parts.samples(arm, steps, 0)["ids"])
            assert ids.shape == (4, LENGTH - len(parts.prompt)) and not (ids == parts.tokenizer.mask_token_id).any()
            if arm.causal:  # nothing that the denoiser cannot emit, and no second start token but an end of text
                assert ids.max() < parts.tokenizer.bos_token_id + parts.wraps
                assert not parts.wraps or (ids[:, 0] == parts.tokenizer.bos_token_id).all()
    cost = {(row["samples"], row["steps"]): row for row in result["samples"]}
    calls = {name: cost["EDLM-AR", 4][f"{name}_calls"]["value"] for name in ("denoiser", "energy")}
    assert calls["denoiser"] == calls["energy"] > cost["EDLM-AR", 2]["denoiser_calls"]["value"]
    flops = calls["denoiser"] * parts.arms[0].flops + 2 * calls["energy"] * parts.arms[-1].flops
    assert cost["EDLM-AR", 4]["gigaflops_per_sample"] == pytest.approx(flops / 1e9)
    assert [step["t"] for step in cost["EDLM-AR", 4]["profile"]] == [1, 0.75, 0.5, 0.25]
    assert all(1 <= step["effective_sample_size"] <= 2 for step in cost["EDLM-AR", 4]["profile"])
    assert cost["AR", None]["profile"] == cost["MDLM", 4]["profile"] == []


def test_an_interrupted_study_goes_on_and_repeats_nothing(study, monkeypatch, tmp_path):
    settings, finished, result, _ = study
    output = shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr(quality, "plot", lambda *_: [])
    stamps = {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    calls = []
    for name in ("generate", "score", "judge_rows"):
        own = getattr(Study, name)
        counted = lambda *given, own=own, name=name: (calls.append(name), own(*given))[1]  # noqa: E731
        monkeypatch.setattr(Study, name, counted)
    again = run_study(settings, output, lambda *_: None)
    assert not calls and stamps == {path: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    assert (again["samples"], again["bounds"]) == (result["samples"], result["bounds"])
    written = {path: json.loads(path.read_text()) for path in sorted((output / "parts").iterdir())}
    lost = [next(p for p in written if p.name.startswith("bound"))]
    lost += [p for p, part in written.items() if p.name.startswith("samples") and part["inputs"]["arm"] == "AR"]
    lost += [p for p, part in written.items() if p.name.startswith("samples") and part["inputs"]["arm"] == "EDLM-AR"]
    for path in lost:
        path.unlink()
    run_study(settings, output, lambda *_: None)
    assert sorted(calls) == ["generate"] * 6 + ["score"]
    for path in lost:  # the same seeds give the same numbers, whatever ran before
        again, before = json.loads(path.read_text())["result"], written[path]["result"]
        assert all(again[name] == before[name] for name in again if name != "seconds")
    calls.clear()
    run_study(dataclasses.replace(settings, seeds=(0,), nce=()), output, lambda *_: None)
    assert "generate" not in calls and "score" not in calls and "judge_rows" in calls  # of one seed alone


def test_entropy_stands_beside_every_perplexity(study):
    _, output, result, _ = study
    table = (output / "results.md").read_text()
    header = next(line for line in table.splitlines() if "Gen-PPL" in line and line.startswith("|")).split(" | ")
    assert header[header.index("Gen-PPL") + 1] == "entropy (bits)"
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    for row in result["samples"]:
        name = row["samples"], str(row["steps"] or "-")
        line = next(line for line in rows if tuple(line[:2]) == name)
        assert line[3] != "-" and line[4] != "-"
    assert "The judge is the AR model of the study" in table and "m = 2 or none" in table


def test_another_judge_reads_the_texts_anew(tmp_path):
    given = write_models(tmp_path)
    judge = tiny_gpt2(vocab_size=29, n_positions=8, bos_token_id=27, eos_token_id=27)  # windows: shorter than the texts
    judge.save_pretrained(tmp_path / "judge")
    text8_tokenizer(8).save_pretrained(tmp_path / "judge")
    given |= {"judge": str(tmp_path / "judge"), "nce": (), "autoregressive": None, "vocabulary": None}
    result = run_study(QualitySettings(**given, **TINY | {"steps": (2,)}), tmp_path / "out", lambda *_: None)
    assert [row["samples"] for row in result["samples"]] == ["data: books", "MDLM"]
    assert all(row["generative_perplexity"]["value"] > 1 and row["known_words"] is None for row in result["samples"])
    assert "effective_sample_size.png" not in result["plots"] and len(result["plots"]) == 3
    assert f"Gen-PPL under {given['judge']}." in (tmp_path / "out" / "results.md").read_text()


def test_flops_are_those_of_the_specification():
    assert forward_flops(MDLMConfig(), 1024) == pytest.approx(292e9, rel=2e-3)
    config = MDLMConfig(vocab_size=28, hidden_dim=64, n_blocks=2, n_heads=2)
    model, length = MDLMForCausalLM(dataclasses.replace(config, causal=True)), 8
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = 2 * 2 * 2 * 64 * length * (length + 1) / 2
    assert forward_flops(config, length, causal=True) == 2 * length * linear + attention


def test_profile_counts_only_what_was_weighed():
    nan = torch.nan
    energies = torch.tensor([[[0.0, 2.0], [nan, nan]], [[nan, nan], [nan, nan]], [[1.0, 1.0], [0.0, 4.0]]])
    sizes = torch.tensor([[1.5, nan], [nan, nan], [2.0, 1.0]])
    output = EDLMGenerationOutput(energies=energies, effective_sample_size=sizes)
    rows = quality.profile(quality.summed([step_sums(output), None, step_sums(output)]))
    assert [(row["t"], row["num_samples"], row["effective_sample_size"]) for row in rows] == [
        (1, 2, 1.5),
        (pytest.approx(1 / 3), 4, 1.5),
    ]
    assert rows[1]["standard_error"] == pytest.approx(np.std([2, 1, 2, 1], ddof=1) / 2)
    assert rows[1]["energy_sd"] == pytest.approx(np.std([0, 4], ddof=1) / 2)


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
        ({"device": "abacus"}, "cpu, cuda"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        QualitySettings(**{"model": "m", "data": ("text8",)} | change)


def test_networks_that_do_not_fit_are_refused(tmp_path):
    given = write_models(tmp_path)
    with pytest.raises(ValueError, match="Nothing judges"):
        Study(QualitySettings(**given | {"autoregressive": None}), tmp_path / "out")
    with pytest.raises(ValueError, match="give one"):
        Study(QualitySettings(**given | {"nce": given["nce"] * 2}), tmp_path / "out")
    other = EDLMForMaskedDiffusion.from_components(
        randomised(MDLMForMaskedLM.from_pretrained(given["model"]), 5), energy_type="nce"
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another denoiser"):
        Study(QualitySettings(**given | {"nce": (str(tmp_path / "other"),)}), tmp_path / "out")


def test_command_writes_and_prints(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given = write_models(tmp_path)
    options = ["--model", given["nce"][0], "--autoregressive", given["autoregressive"], "--data", given["data"][0]]
    small = ["--quick", "--steps", "2", "--samples", "2", "--texts", "2", "--inner-copies", "1", "--device", "cpu"]
    command = ["benchmark", "quality", "--output", str(tmp_path / "out"), *options, *small, "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    arms = [row["samples"] for row in json.loads(result.stdout)["samples"]]
    assert arms == ["data: books", *ARMS]  # a composite brings its own energy
    assert "matplotlib" in result.stderr and not list((tmp_path / "out").glob("*.png"))
    refused = CliRunner().invoke(app, [*command, "--candidates", "1"])
    assert refused.exit_code == 1 and "at least 2" in refused.output
