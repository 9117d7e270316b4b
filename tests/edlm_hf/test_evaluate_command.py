"""`edlm evaluate`: a model and a corpus in, likelihoods with their errors out."""

import json

import pytest
import torch
from published import randomised, tiny_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.evaluation import autoregressive_nll, nelbo, sampler_bound
from edlm_hf.tokenization import text8_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def saved(tmp_path):
    """An EDLM-AR model with its tokenizer, and its AR baseline alone."""
    tokenizer = text8_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "mask_token_id": tokenizer.mask_token_id, "model_length": 16}
    sizes["bos_token_id"] = tokenizer.bos_token_id
    denoiser = randomised(MDLMForMaskedLM(tiny_config(**sizes)))
    causal = randomised(MDLMForCausalLM(tiny_config(causal=True, **sizes)), seed=1)
    causal.save_pretrained(tmp_path / "causal")
    composite = EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar")
    composite.save_pretrained(tmp_path / "edlm")
    for folder in ("causal", "edlm"):
        tokenizer.save_pretrained(tmp_path / folder)
    (tmp_path / "texts.txt").write_text("A plain, short text of forty-odd letters")
    return tmp_path, denoiser, causal, tokenizer


def call(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def as_json(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_blocks_of_a_local_text_are_scored_to_the_last_character(saved):
    folder, denoiser, causal, tokenizer = saved
    options = ("--dataset", folder / "texts.txt", "--normalize-text8", "--num-samples", 4)
    text = " a plain short text of forty odd letters"
    found = as_json(
        "--model",
        folder / "edlm",
        *options,
        "--metrics",
        "nelbo,sampler_bound,autoregressive_nll",
    )
    assert found["num_characters"] == found["num_tokens"] == len(text)

    bodies = [text[i : i + 15] for i in range(0, len(text), 15)]  # behind the start token
    rows = [[tokenizer.bos_token_id, *tokenizer(body, add_special_tokens=False).input_ids] for body in bodies]
    metrics = found["metrics"]
    assert metrics["nelbo"]["value"] == pytest.approx(nelbo(denoiser, rows, num_samples=4).value, abs=1e-5)

    exact = autoregressive_nll(causal, rows)
    assert metrics["autoregressive_nll"]["value"] == pytest.approx(exact.value, abs=1e-5)
    bits = metrics["autoregressive_nll"]["bits_per_character"]["value"]
    assert bits == pytest.approx(exact.bits_per("character").value, abs=1e-5)
    assert metrics["sampler_bound"]["num_samples"] == 4 * len(rows)

    alone = as_json("--model", folder / "causal", *options, "--metrics", "autoregressive_nll")
    assert alone["metrics"]["autoregressive_nll"]["value"] == pytest.approx(exact.value, abs=1e-5)


def test_the_bound_of_another_sampler_is_measured(saved):
    folder, denoiser, _, tokenizer = saved
    (folder / "words.txt").write_text("a short text")
    options = "--dataset", folder / "words.txt", "--normalize-text8", "--metrics", "sampler_bound", "--num-steps", 4
    options = "--model", folder / "edlm", *options, "--num-candidates", 1
    spaced = as_json(*options, "--sampler", "spaced", "--sampler-option", "distance=2")
    row = [tokenizer.bos_token_id, *tokenizer(" a short text", add_special_tokens=False).input_ids]
    exact = sampler_bound(denoiser, [row], num_steps=4, sampler="spaced", distance=2)
    found = spaced["metrics"]["sampler_bound"]

    assert found["value"] == pytest.approx(exact.value, abs=1e-5) and found["standard_error"] == 0
    assert spaced["settings"]["sampler_options"] == {"sampler": "spaced", "distance": 2}
    assert found["value"] != as_json(*options)["metrics"]["sampler_bound"]["value"]


def test_text_is_brought_to_the_alphabet_of_the_tokenizer_and_the_settings_are_told(saved):
    options = ("--model", saved[0] / "edlm", "--dataset", saved[0] / "texts.txt", "--num-steps", 7, "--seed", 3)
    found, said, raw = (as_json(*options, *more) for more in ((), ("--normalize-text8",), ("--no-normalize-text8",)))
    assert found["metrics"] == said["metrics"] != raw["metrics"] and raw["num_characters"] == 40
    assert (found["settings"]["num_steps"], found["settings"]["seed"]) == (7, 3)
    assert {"date", "hardware", "command"} <= set(found["environment"])


def test_windows_score_every_token_of_a_document_once(saved):
    folder, *_ = saved
    options = ("--dataset", folder / "texts.txt", "--normalize-text8", "--stride", 5, "--length", 12)
    found = as_json("--model", folder / "edlm", *options)
    assert found["num_tokens"] == 40 and found["num_texts"] > 4


def test_a_table_shows_both_errors_and_the_number_of_samples(saved):
    folder, *_ = saved
    result = call("--model", folder / "edlm", "--dataset", folder / "texts.txt", "--normalize-text8")
    assert result.exit_code == 0, result.output
    assert "| nelbo |" in result.output
    assert "noise samples" in result.output
    assert "±" in result.output


def test_an_error_that_is_not_known_is_null_in_json(saved):
    folder, *_ = saved
    options = ("--dataset", folder / "texts.txt", "--normalize-text8", "--num-texts", 1)
    assert as_json("--model", folder / "edlm", *options)["metrics"]["nelbo"]["text_standard_error"] is None


def test_the_profile_is_a_table_of_its_own(saved):
    options = ("--model", saved[0] / "edlm", "--dataset", saved[0] / "texts.txt", "--num-samples", 1)
    alone, both = (call(*options, "--metrics", metrics).stdout for metrics in ("h_profile", "nelbo,h_profile"))
    assert alone.startswith("| h_profile, t | nats/masked token |")
    assert len(alone.strip().splitlines()) == 22
    assert "| nelbo |" in both and both.endswith(alone)


def test_the_profile_is_part_of_the_json(saved):
    folder, *_ = saved
    found = as_json(
        "--model", folder / "edlm", "--dataset", folder / "texts.txt", "--normalize-text8", "--metrics", "h_profile"
    )
    assert len(found["metrics"]["h_profile"]["times"]) == len(found["metrics"]["h_profile"]["entropies"]) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "perplexity"), "must name some of nelbo"),
        (("--normalize", "text9"), "must be text8 or none"),
        (("--num-texts", 0), "num_texts is 0"),
        (("--length", 0), "length is 0"),
        (("--num-samples", 3), "num_samples is 3"),
        (("--sampler", "spaced"), "sampler can only change sampler_bound"),
        (("--metrics", "sampler_bound", "--sampler", "spaced", "--sampler-option", "eta=1"), "'spaced' has no eta"),
        (("--metrics", "sampler_bound", "--sampler", "low_confidence"), "nearest sampler with one is 'top_k'"),
    ],
)
def test_bad_choices_are_refused_with_advice(saved, options, message):
    folder, *_ = saved
    result = call(
        "--model",
        folder / "edlm",
        "--dataset",
        folder / "texts.txt",
        "--normalize-text8",
        *options,
    )
    assert result.exit_code != 0 and message in result.output


def test_a_corpus_that_is_not_there_is_an_error(saved):
    folder, *_ = saved
    result = call("--model", folder / "edlm", "--dataset", folder / "nothing.txt")
    assert result.exit_code == 1 and "nothing.txt" in result.output
    assert torch.is_grad_enabled()


# The keys of `settings` in files of results, which others read
RECORDED = """model text_column data metrics tokenizer split normalize length stride num_texts num_steps sampler_options
num_candidates inner_copies energy_window num_samples batch_size seed dtype device"""


def test_names_of_0_1_0_are_known_and_results_keep_their_keys(saved):
    folder, *_ = saved
    new = as_json("--model", folder / "edlm", "--dataset", folder / "texts.txt", "--no-normalize-text8")
    old = as_json("--model", folder / "edlm", "--data", folder / "texts.txt", "--normalize", "none")
    assert old["metrics"] == new["metrics"] and old["settings"] == new["settings"]
    assert set(new["settings"]) == set(RECORDED.split())
    assert new["settings"]["normalize"] == "none"
    assert new["settings"]["data"] == str(folder / "texts.txt")


def test_special_tokens_have_no_characters(saved):
    # Blocks of whole documents end with an end token, which counts, but is no text
    folder, denoiser, _, _ = saved
    words = ["day", "night", "sun", "moon"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate([*words, "<|end|>", "<m>"])})),
        bos_token="<|end|>",
        eos_token="<|end|>",
        mask_token="<m>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    config = tiny_config(vocab_size=6, mask_token_id=5, bos_token_id=None, eos_token_id=None, model_length=8)
    randomised(MDLMForMaskedLM(config)).save_pretrained(folder / "words")
    tokenizer.save_pretrained(folder / "words")
    (folder / "rows.jsonl").write_text('{"text": "day night"}\n{"text": "sun"}\n' * 4)

    found = as_json("--model", folder / "words", "--dataset", folder / "rows.jsonl", "--num-samples", 2)
    # Six tokens of the stream "day night / sun / day night / ..." in every block, the last of them cut short
    texts = ["day night sun day", "night sun day night", "sun day night", "sun"]
    assert found["num_characters"] == sum(map(len, texts))
    assert found["num_tokens"] == 20 + 2 * len(texts)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--num-candidates", 8), "num_candidates changes nothing: metrics is nelbo"),
        (("--num-steps", 7, "--inner-copies", 3), "num_steps, inner_copies changes nothing"),
        (("--energy-window", 0.5, "--metrics", "discrete_nelbo"), "energy_window changes nothing"),
        (("--num-steps", 7, "--metrics", "discrete_nelbo"), None),
    ],
)
def test_numbers_of_a_sampler_that_no_metric_looks_at_are_told(saved, options, names):
    folder, *_ = saved
    result = call("--model", folder / "edlm", "--dataset", folder / "texts.txt", *options)
    assert result.exit_code == 0
    assert "changes nothing" not in result.stderr if names is None else names in result.stderr


def test_windows_read_documents_as_blocks_do(saved):
    # What spells the mask token stays text, and a missing document is empty
    folder, *_ = saved
    rows = ['{"text": "the [MASK] cat"}', '{"text": null}']
    (folder / "rows.jsonl").write_text("\n".join(rows))
    options = ("--model", folder / "edlm", "--dataset", folder / "rows.jsonl", "--no-normalize-text8")
    blocks = as_json(*options)
    windows = as_json(*options, "--stride", 8)
    assert windows["num_tokens"] == blocks["num_tokens"] == len("the [MASK] cat")

    result = call(*options, "--stride", 1, "--length", 1)
    assert result.exit_code == 1 and "must be at least 2" in result.stderr


def test_the_column_of_the_text_is_an_option(saved):
    folder, *_ = saved
    (folder / "rows.jsonl").write_text('{"body": "some words", "title": "one"}\n')
    options = ("--model", folder / "edlm", "--dataset", folder / "rows.jsonl")
    result = call(*options)
    assert result.exit_code == 1 and "Give text_column, one of body, title" in result.stderr
    assert as_json(*options, "--text-column", "body")["num_characters"] == len(" some words")
