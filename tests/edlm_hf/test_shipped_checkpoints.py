"""The checkpoints that ship: found by name and by path, small, and trained for what they say."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

import edlm_hf
from edlm_hf.card_signatures import is_untouched
from edlm_hf.checkpoints import ASSETS, CHECKPOINTS, locate
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, nelbo
from edlm_hf.hub import missing_code
from edlm_hf.modeling.masked_diffusion import sample_categorical, token_log_probs

RECIPES = Path(__file__).parents[2] / "recipes"

# The beginning of "The Sign of the Four" (1890)
TEXT = """Sherlock Holmes took his bottle from the corner of the mantelpiece and his hypodermic syringe from its neat
morocco case. With his long, white, nervous fingers he adjusted the delicate needle, and rolled back his left
shirt-cuff. For some little time his eyes rested thoughtfully upon the sinewy forearm and wrist all dotted and scarred
with innumerable puncture-marks."""


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(edlm_hf.checkpoint("edlm-books"))


@pytest.fixture(scope="module")
def text():
    return AutoTokenizer.from_pretrained(edlm_hf.checkpoint("edlm-books")).encode(" ".join(TEXT.split()))


def test_names_are_folders_and_unknown_names_are_told_what_there_is(tmp_path, monkeypatch):
    masks = {name: AutoTokenizer.from_pretrained(edlm_hf.checkpoint(name)).mask_token_id for name in CHECKPOINTS}
    assert masks == {"edlm-books": 4095, "edlm-books-ar": 4095, "edlm-grammar": 3}
    with pytest.raises(ValueError, match="there are edlm-books, edlm-books-ar"):
        edlm_hf.checkpoint("gpt2")
    assert locate("gpt2") == "gpt2" and locate("edlm-books") == edlm_hf.checkpoint("edlm-books")
    (tmp_path / "edlm-books").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("edlm-books") == "edlm-books"  # a folder of the user's comes first


def test_together_they_take_at_most_28_megabytes_and_compute_in_float32(model):
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 28e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not list(ASSETS.rglob("*.py"))  # the code is the package's


def test_every_auto_class_and_the_parts_load(model):
    path = edlm_hf.checkpoint("edlm-books")
    assert type(AutoModel.from_pretrained(path)) is type(model) is edlm_hf.EDLMForMaskedDiffusion
    denoiser = edlm_hf.MDLMForMaskedLM.from_pretrained(path)
    ids = torch.tensor([[4094, 4095, 20, 8, 5]])
    assert torch.equal(denoiser(ids).logits, model.denoiser(ids).logits)
    assert isinstance(edlm_hf.EDLMEnergyModel.from_pretrained(path), type(model.energy_model))


def test_a_push_adds_the_code_that_they_lack():
    added = missing_code(ASSETS / "edlm-books")
    assert {"config.json", "modeling_edlm.py", "masked_diffusion.py"} <= set(added)
    assert "model.safetensors" not in added
    named = json.loads(added["config.json"])["auto_map"]
    assert named["AutoModelForMaskedLM"] == "modeling_edlm.EDLMForMaskedDiffusion"
    assert "AutoConfig" in named


def test_cards_tell_how_they_were_made_and_what_was_measured():
    for name in CHECKPOINTS:
        card = (ASSETS / name / "README.md").read_text()
        assert "license: apache-2.0" in card and is_untouched(card)
        if name == "edlm-grammar":
            assert "python recipes/grammar.py" in card
            continue
        assert "train-autoregressive recipes/prose_cpu/autoregressive.yaml" in card
        assert "bits/character" in card and "Not recorded" not in card


@pytest.mark.parametrize("name", ["edlm-books", "edlm-books-ar"])
def test_cards_have_the_likelihoods_of_the_results(name, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import ship

    card = (ASSETS / name / "README.md").read_text()
    found = ship.likelihoods(name, RECIPES.parent / "results" / "prose")
    assert len(found) == 2
    for row, (bits, _) in found.items():
        assert f"| {row} | {bits:.6g} |" in card
    assert ship.SHIPPED[name].data in card and "\n".join(ship.SHIPPED[name].commands) in card
    assert ship.SHIPPED[name].limits in card


def test_readings_of_an_energy_are_those_of_its_last_evaluation(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import ship

    assert ship.energy_readings(tmp_path) == {}
    names = "eval_nce_loss", "eval_nce_loss_standard_error", "eval_effective_sample_size"
    history = [dict(zip(names, values, strict=True)) for values in ((0.5, 0.1, 2.0), (0.25, 0.05, 3.0))]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.0}, *history, {"loss": 0.9}]}))
    assert list(ship.energy_readings(tmp_path).values()) == [(0.25, 0.05), (3.0, None)]


def test_likelihoods_of_english_are_those_of_trained_models(model, text):
    causal = AutoModelForCausalLM.from_pretrained(edlm_hf.checkpoint("edlm-books-ar"))
    characters = len(" ".join(TEXT.split()))
    bits = autoregressive_nll(causal, [text]).bits_per("character", characters).value
    bound = (
        nelbo(model.denoiser, [text], num_samples=64, batch_size=64)
        .bits_per(
            "character",
            characters,
        )
        .value
    )
    assert bits < 2.0 and bits - 0.1 < bound < 2.4


def test_the_energy_prefers_the_text_to_proposals_with_the_same_visible_tokens(model, text):
    clean = torch.tensor([text])
    mask = model.config.mask_token_id
    generator = torch.Generator().manual_seed(0)

    wins = []
    for share in (0.2, 0.4, 0.6, 0.8):
        masked = torch.rand(clean.shape, generator=generator) < share
        masked[:, 0] = False
        noisy = clean.masked_fill(masked, mask)
        with torch.no_grad():
            log_probs = token_log_probs(model.denoiser(noisy).logits[masked], mask)
        points = torch.rand(len(log_probs), 16, dtype=torch.float64, generator=generator)
        candidates = clean.unsqueeze(1).repeat(1, 17, 1)
        candidates[0, 1:, masked[0]] = sample_categorical(log_probs, points)[0].T
        with torch.no_grad():
            energies = model.energy(candidates, noisy)[0]
        wins.append((energies[0] < energies[1:]).float().mean())

    # 64 draws; an energy that knows nothing wins half of each row of 16
    assert torch.stack(wins).mean() > 0.7


@torch.no_grad()
def test_speculative_tokens_have_the_probabilities_of_the_baseline(model):
    """log p_AR as the tokens were accepted, round by round with a cache, against one call for the whole text."""
    causal = AutoModelForCausalLM.from_pretrained(edlm_hf.checkpoint("edlm-books-ar"))
    network = edlm_hf.EDLMForMaskedDiffusion.from_components(model.denoiser, causal)
    out = network.generate(
        torch.full((1, 1), causal.config.bos_token_id),
        max_new_tokens=128,
        sampler="speculative",
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
        output_log_probs=True,
    )
    logits = causal(input_ids=out.sequences[:, :-1]).logits
    logits[..., model.config.mask_token_id] = -torch.inf
    log_probs = logits.log_softmax(-1).gather(-1, out.sequences[:, 1:, None]).squeeze(-1)

    torch.testing.assert_close(out.log_probs[:, 1:], log_probs, rtol=0, atol=1e-4)

    # Drafts are accepted: 128 tokens take far fewer rounds
    assert out.num_denoiser_calls < 80


def test_generate_takes_the_short_name():
    arguments = (
        "generate",
        "--model",
        "edlm-books",
        "--prompt",
        "The",
        "--max-new-tokens",
        "8",
        "--max-denoising-steps",
        "2",
    )
    result = CliRunner().invoke(app, [*arguments, "--seed", "0", "--json"])
    assert result.exit_code == 0, result.output
    assert '["The' in result.stdout
