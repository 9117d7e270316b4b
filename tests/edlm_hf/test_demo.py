"""The scenes of the demo: what is hidden, what is marked, what is right, and what a terminal of 80 columns shows."""

import io
import json
import logging
from collections import Counter

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

import edlm_hf
from edlm_hf.cli import app
from edlm_hf.demo.grammar import NUM_WORDS, grammar_tokenizer, sentences
from edlm_hf.demo.grammar_scene import show_grammar
from edlm_hf.demo.prose_scenes import HIDDEN_WORDS, PARAGRAPH, hide, marked
from edlm_hf.tokenization import text8_tokenizer, train_subword_tokenizer

SMALL = ("--max-new-tokens", "12", "--max-denoising-steps", "2", "--num-candidates", "2")


@pytest.fixture(params=["letters", "subwords"])
def tokenizer(request):
    if request.param == "letters":
        return text8_tokenizer()
    return train_subword_tokenizer([PARAGRAPH] * 3, vocab_size=300)


def test_hidden_words_are_masks_and_nothing_else_is(tokenizer):
    canvas = hide(PARAGRAPH, HIDDEN_WORDS, tokenizer)[0]
    whole = tokenizer(PARAGRAPH, return_tensors="pt").input_ids[0]
    is_mask = canvas == tokenizer.mask_token_id
    assert torch.equal(canvas[~is_mask], whole[~is_mask])
    hidden = tokenizer.decode(whole[is_mask])
    assert hidden.split() == [word.strip() for word in HIDDEN_WORDS]


def test_marked_text_is_the_text_with_the_filled_tokens_in_green(tokenizer):
    ids = tokenizer("the old house", return_tensors="pt").input_ids[0]
    filled = torch.arange(len(ids)) >= len(ids) - 2
    text = marked(ids, filled, tokenizer)
    assert text.plain == "the old house"
    green = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == "green")
    assert green == tokenizer.decode(ids[-2:])


def test_the_language_has_its_words_in_agreement():
    language = sentences()
    assert len(language) == len(set(language)) == 1440
    assert {len(text.split()) for text in language} == {NUM_WORDS}
    assert "some nuns hide their map and wait in their house" in language
    assert "some nuns hides their map and wait in their house" not in language
    persons = Counter(text.split()[1] for text in language)
    assert set(persons.values()) == {144} and len(persons) == 10
    assert len(grammar_tokenizer()) == 43


def test_the_models_of_the_language_know_it_and_the_energy_makes_more_sentences_right():
    model = AutoModelForMaskedLM.from_pretrained(edlm_hf.checkpoint("edlm-grammar"))
    assert model.num_parameters() < 200_000

    screen = io.StringIO()
    found = show_grammar(Console(file=screen, width=80), candidates=8, seed=1)
    for alone, weighed in (found[:2], found[2:]):
        error = (alone["standard_error"] ** 2 + weighed["standard_error"] ** 2) ** 0.5
        assert weighed["right"] - alone["right"] > 3 * error

    shown = screen.getvalue()
    assert "✓" in shown and "energy of 8" in shown and max(map(len, shown.splitlines())) <= 80


@pytest.fixture
def few_sentences(monkeypatch):
    monkeypatch.setattr("edlm_hf.demo.grammar_scene.NUM_SENTENCES", 12)


def test_the_demo_fits_eighty_columns_and_says_what_each_text_cost(few_sentences):
    result = CliRunner().invoke(app, ["demo", *SMALL], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for scene in ("1. A prompt continued", "2. Five hidden words", "3. A language of 1,440 sentences", "Next"):
        assert scene in result.output
    assert result.output.count("planned steps, energy of 2") == 2 and "2 + 2 calls" in result.output
    scenes = result.output[result.output.index("1. A prompt") : result.output.index("Next")]
    assert max(map(len, scenes.splitlines())) <= 80


def test_the_demo_prints_what_it_found_as_json(few_sentences, caplog):
    # Advice that was given before would not be given again
    logging.Logger.warning_once.cache_clear()
    result = CliRunner().invoke(app, ["demo", *SMALL, "--prompt", "she said", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [arm["denoiser_calls"] for arm in found["continuation"]][1:] == [2, 2]
    assert all(arm["text"].startswith("she said") for arm in found["continuation"])
    assert len(found["infilling"]) == 3 and len(found["grammar"]) == 4
    assert "distribution" not in caplog.text
