"""The study of infilling: which words are hidden, and shares of recovered words that are known."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import randomised, tiny_config, tiny_denoiser
from torch import nn
from typer.testing import CliRunner

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMForCausalLM
from edlm_hf.benchmarks.infilling import InfillingStudy, fill_paragraphs, padded, run_infilling
from edlm_hf.benchmarks.infilling_report import markdown
from edlm_hf.benchmarks.infilling_settings import InfillingSettings
from edlm_hf.benchmarks.paragraphs import Paragraph, hide_words, ranges_of_words
from edlm_hf.benchmarks.text_sets import load_paragraphs
from edlm_hf.cli import app
from edlm_hf.tokenization import text8_tokenizer, train_subword_tokenizer

LETTERS = text8_tokenizer(64, start_token=False)
MASK = LETTERS.mask_token_id
A, B = LETTERS.convert_tokens_to_ids(["a", "b"])


class Pairs(nn.Module):
    """A denoiser of texts like " ab ba ab", whose words are ab and ba with probability 1/2 each.

    A letter is known as soon as the other letter of its word is visible.
    """

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=len(LETTERS),
            mask_token_id=MASK,
            max_position_embeddings=64,
        )

    def forward(self, input_ids, attention_mask=None):
        # Letters are at 3 m + 1 and 3 m + 2, the other letter is the neighbour
        position = torch.arange(input_ids.shape[1])
        other = torch.where(position % 3 == 1, position + 1, position - 1)
        other = input_ids[:, other.clamp(0, len(position) - 1)]

        logits = torch.full((*input_ids.shape, len(LETTERS)), -torch.inf)
        logits[..., A] = torch.where(other == A, -torch.inf, 0.0)
        logits[..., B] = torch.where(other == B, -torch.inf, 0.0)
        return SimpleNamespace(logits=logits)


def texts_of_pairs(count: int) -> list[str]:
    """Texts of 20 words, each ab or ba."""
    rng = np.random.default_rng(0)
    return ["".join(f" {word}" for word in rng.choice(["ab", "ba"], 20)) for _ in range(count)]


def share_of_pairs(**options) -> float:
    """The share of 1,000 hidden words that are recovered. Its standard error is below 0.016."""
    model = EDLMForMaskedDiffusion.from_components(Pairs(), mask_token_id=MASK)
    paragraphs = hide_words(texts_of_pairs(200), LETTERS, count=200, num_words=5, longest=60, seed=1)
    result = fill_paragraphs(
        model,
        paragraphs,
        LETTERS,
        seed=0,
        batch_size=64,
        **{"num_candidates": 1} | options,
    )
    return sum(result["recovered"]) / 1000


def test_letters_that_are_revealed_together_are_right_a_quarter_of_the_time():
    assert share_of_pairs(sampler="ancestral", max_denoising_steps=1) == pytest.approx(1 / 4, abs=0.06)


def test_letters_that_are_revealed_one_by_one_are_right_half_of_the_time():
    assert share_of_pairs(sampler="first_hitting") == pytest.approx(1 / 2, abs=0.06)


def test_an_energy_that_knows_the_words_is_worth_the_second_step():
    def wrong_words(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        words = candidate_ids[..., :60].unflatten(-1, (20, 3))
        return 50.0 * (words[..., 1] == words[..., 2]).sum(-1)

    # One of 2 ** 5 candidates has no wrong word
    options = {
        "energy": wrong_words,
        "num_candidates": 512,
        "max_denoising_steps": 1,
        "sampler": "ancestral",
    }
    assert share_of_pairs(**options) == pytest.approx(1 / 2, abs=0.06)


def test_greedy_infilling_recovers_the_words_that_begin_with_the_first_of_equal_letters():
    paragraphs = hide_words(texts_of_pairs(200), LETTERS, count=200, num_words=5, longest=60, seed=1)
    words = [word for paragraph in paragraphs for word in paragraph.words(paragraph.ids, LETTERS)]
    share = share_of_pairs(sampler="first_hitting", do_sample=False)
    assert 0.4 < share < 0.6
    assert share in (words.count("ab") / 1000, words.count("ba") / 1000)

    # Both letters are an a if they are revealed together
    assert share_of_pairs(sampler="ancestral", max_denoising_steps=1, do_sample=False) == 0


def test_without_a_hidden_word_nothing_is_called():
    paragraphs = [Paragraph(LETTERS(" ab ba").input_ids, [])]
    model = EDLMForMaskedDiffusion.from_components(Pairs(), mask_token_id=MASK)
    result = fill_paragraphs(model, paragraphs, LETTERS, seed=0, batch_size=1, num_candidates=1)
    assert result == {"recovered": [0], "denoiser_calls": [0], "energy_calls": [0]}


def test_only_whole_words_of_letters_are_hidden():
    text = "Jo's well-known dog2 said: été, (no) I"
    letters = [(i, i + 1) for i in range(len(text))]
    assert [text[begin:end] for begin, end in ranges_of_words(text, letters)] == ["said", "été", "no", "I"]

    # A token that holds more than a word, or a letter of two words, is not hidden
    assert ranges_of_words("no, it is", [(0, 3), (3, 6), (6, 9)]) == [(1, 2), (2, 3)]
    assert ranges_of_words("in it", [(0, 1), (1, 4), (4, 5)]) == []


@pytest.mark.parametrize("kind", ["letters", "sub-words"])
def test_a_hidden_word_has_a_mask_for_each_of_its_tokens(kind):
    text = "the quick brown fox jumps over the lazy dog and runs away from all the other animals there at once"
    tokenizer = LETTERS
    if kind == "sub-words":
        tokenizer = train_subword_tokenizer([text] * 3, vocab_size=290)
    (paragraph,) = hide_words([text], tokenizer, count=1, num_words=4, longest=200, seed=0)

    hidden = paragraph.words(paragraph.ids, tokenizer)
    assert {word.strip() for word in hidden} <= set(text.split())
    masked = paragraph.masked(tokenizer.mask_token_id)
    assert len(masked) == len(paragraph.ids)

    num_masks = masked.count(tokenizer.mask_token_id)
    assert num_masks == sum(len(tokenizer(word, add_special_tokens=False).input_ids) for word in hidden)

    # The space before a word is hidden where it is a part of its first token
    if kind == "letters":
        assert num_masks == len("".join(hidden)) and not any(" " in word for word in hidden)
    else:
        assert sum(word.startswith(" ") for word in hidden) >= 1


def test_the_choice_depends_on_the_seed_alone():
    def chosen(seed):
        return hide_words(texts_of_pairs(30), LETTERS, count=3, num_words=5, longest=60, seed=seed)

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    with pytest.raises(ValueError, match="Only 30 of 30 paragraphs .* 31 are asked for"):
        hide_words(texts_of_pairs(30), LETTERS, count=31, num_words=5, longest=60, seed=0)
    with pytest.raises(ValueError, match="Only 0 of 30 paragraphs have at most 59 tokens and at least 20 words"):
        hide_words(texts_of_pairs(30), LETTERS, count=1, num_words=5, longest=59, seed=0)
    with pytest.raises(ValueError, match="Only 0 of 30 .* at least 24 words"):
        hide_words(texts_of_pairs(30), LETTERS, count=1, num_words=6, longest=60, seed=0)


def test_rows_of_a_batch_are_padded_to_the_longest():
    input_ids, attention_mask = padded([Paragraph([5, 6], [(0, 1)]), Paragraph([7, 8, 9], [(1, 3)])], 0)
    assert input_ids.tolist() == [[0, 6, 1], [7, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_paragraphs_are_found_before_the_text8_alphabet_removes_their_ends(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("One 2\nthree.\n\nFour!\n")
    assert load_paragraphs(str(file), LETTERS) == [" one two three", " four"]


def write_models(folder) -> dict:
    """A composite with an NCE energy, an AR model, and a corpus of 12 paragraphs."""
    tokenizer = text8_tokenizer(64)
    sizes = {"vocab_size": len(tokenizer), "model_length": 64, "bos_token_id": tokenizer.bos_token_id}
    energy = randomised(EDLMEnergyModel(tiny_config(**sizes)))
    models = {
        "edlm": EDLMForMaskedDiffusion.from_components(tiny_denoiser(**sizes), energy, tokenizer=tokenizer),
        "ar": randomised(MDLMForCausalLM(tiny_config(causal=True, **sizes))),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    corpus = folder / "books.txt"
    words = np.random.default_rng(0).choice(["the", "fox", "is", "a", "dog"], (12, 12))
    corpus.write_text("\n\n".join(" ".join(row) for row in words))
    return {
        "model": str(folder / "edlm"),
        "data": (str(corpus),),
        "autoregressive": str(folder / "ar"),
    }


TINY = {
    "num_paragraphs": 6,
    "num_words": 2,
    "samplers": ("ancestral @2", "first_hitting"),
    "num_candidates": 3,
    "greedy": True,
    "seeds": (3, 4),
    "batch_size": 4,
}
ROWS = [(sampler, steps) for _ in range(4) for sampler, steps in (("ancestral", 2), ("first_hitting", None))]
TOKENS = [tokens for tokens in ("drawn", "energy nce, k=3", "energy ar, k=3", "greedy") for _ in range(2)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Settings, folder and result."""
    folder = tmp_path_factory.mktemp("infilling")
    settings = InfillingSettings(**write_models(folder), **TINY)
    return settings, folder / "out", run_infilling(settings, folder / "out", lambda *_: None)


def test_every_way_to_fill_masks_is_measured_on_the_same_paragraphs(study):
    settings, output, result = study
    assert [(row["sampler"], row["steps"]) for row in result["rows"]] == ROWS
    assert [row["tokens"] for row in result["rows"]] == TOKENS

    (texts,) = result["texts"]
    assert (texts["num_paragraphs"], texts["num_words"]) == (6, 12)

    for row in result["rows"]:
        assert len(row["shares"]) == row["share_recovered"]["num_samples"] == 6
        assert row["seconds_per_paragraph"] > 0
        has_energy = row["tokens"].startswith("energy")
        assert (row["energy_calls"]["value"] > 0) == has_energy
        if row["sampler"] == "first_hitting":
            assert row["denoiser_calls"]["value"] == pytest.approx(texts["num_masks"] / 6)

    stored = json.loads((output / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert {path.name for path in output.iterdir()} == {"results.json", "results.md", "parts"}


def test_shares_are_means_over_seeds_and_differences_are_paired(study):
    settings, output, result = study
    parts = [json.loads(path.read_text()) for path in output.glob("parts/filled-*")]
    assert len(parts) == 2 * 3 * 2 + 2  # nothing is drawn in two of them

    first, second = result["rows"][:2]
    assert first["difference"] is None
    of_first = [part for part in parts if part["inputs"]["sampler"] == "ancestral"]
    of_first = [part for part in of_first if part["inputs"]["num_candidates"] == 1 and not part["inputs"]["greedy"]]
    assert sorted(part["inputs"]["seed"] for part in of_first) == [3, 4]

    recovered = np.array([part["result"]["recovered"] for part in of_first])
    assert first["shares"] == pytest.approx(recovered.mean(0) / 2)

    differences = np.array(second["shares"]) - np.array(first["shares"])
    assert second["difference"]["value"] == pytest.approx(differences.mean())
    assert second["difference"]["standard_error"] == pytest.approx(differences.std(ddof=1) / 6**0.5)


def test_the_study_goes_on_where_it_stopped(study, monkeypatch, tmp_path):
    settings, finished, result = study
    output = shutil.copytree(finished, tmp_path / "study")
    filled = []
    own = InfillingStudy.fill

    def counted(self, filling, *arguments):
        filled.append(filling.label)
        return own(self, filling, *arguments)

    monkeypatch.setattr(InfillingStudy, "fill", counted)
    assert run_infilling(settings, output, lambda *_: None)["rows"] == result["rows"]
    assert not filled

    changes = {
        "samplers": ("ancestral @2", "dilated @2"),
        "num_candidates": 1,
        "autoregressive": None,
        "seeds": (3,),
    }
    run_infilling(InfillingSettings(**vars(settings) | changes), output, lambda *_: None)
    assert filled == ["dilated T=2, drawn", "dilated T=2, greedy"]


def test_page_names_what_was_run(study):
    _, _, result = study
    page = markdown(result)
    assert "| ancestral | 2 | energy nce, k=3 |" in page
    assert "| first_hitting | ∞ | greedy |" in page
    assert "6 paragraphs, 12 hidden words" in page
    assert f"`{result['environment']['command']}`" in page


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"samplers": ("magic",)}, "one of ancestral"),
        ({"samplers": ("dilated @4", "dilated @4,8")}, "more than once"),
        ({"num_paragraphs": 1}, "2 or more for an error"),
        ({"num_words": 0}, "must be positive"),
        ({"num_candidates": 0}, "must be positive"),
        ({"num_candidates": 1}, "autoregressive is given, but num_candidates is 1"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (-1,)}, "must not be negative"),
        ({"steps": (0,)}, "must be positive"),
        ({"dtype": "int8"}, "must be one of"),
    ],
)
def test_wrong_settings_are_refused_with_advice(change, advice):
    with pytest.raises(ValueError, match=advice):
        InfillingSettings("m", ("text8",), "ar", **TINY | change)


def test_candidates_need_an_energy(tmp_path):
    given = write_models(tmp_path)
    tiny_denoiser(vocab_size=29, model_length=64).save_pretrained(tmp_path / "mdlm")
    text8_tokenizer(64).save_pretrained(tmp_path / "mdlm")
    settings = InfillingSettings(str(tmp_path / "mdlm"), given["data"], num_candidates=2)
    with pytest.raises(ValueError, match="has no NCE energy: give autoregressive, or 1 candidate"):
        InfillingStudy(settings, tmp_path / "out")


def test_command_writes_and_prints(tmp_path):
    given = write_models(tmp_path)
    command = ["benchmark", "infilling", "--model", given["model"], "--dataset", given["data"][0], "--device", "cpu"]
    command += ["--num-paragraphs", "3", "--num-words", "2", "--sampler", "dilated @2", "--json", "--output"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output

    (row,) = json.loads(result.stdout)["rows"]
    assert (row["sampler"], row["steps"], row["tokens"], row["difference"]) == ("dilated", 2, "drawn", None)

    refused = CliRunner().invoke(app, [*command, str(tmp_path / "other"), "--num-paragraphs", "50"])
    assert refused.exit_code == 1
    assert "ask for fewer, or give more text" in refused.output
