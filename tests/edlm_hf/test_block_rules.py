"""One rule cuts a corpus for training, evaluation and benchmarks: `edlm_hf.data.blocks_for`."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM, checkpoint
from edlm_hf.benchmarks.settings import NetworkSettings, StudySettings
from edlm_hf.benchmarks.study import Study
from edlm_hf.benchmarks.text_sets import load_blocks, load_paragraphs, reading_of
from edlm_hf.commands.corpus_evaluation import load_texts
from edlm_hf.commands.evaluate import EvaluationSettings
from edlm_hf.commands.training_data import choose_tokenizer, load_sets
from edlm_hf.commands.training_flags import DataArguments
from edlm_hf.data import PROTOCOLS, block_rule, blocks_for, load_corpus, to_blocks
from edlm_hf.tokenization import normalize_text8, text8_tokenizer

TEXT = 60 * 'Der Café-Besitzer said: "Tyger, Tyger – 2 of them – burning bright."\nIn the forests of the night. '


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def bert_like_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("edlm-books"))
    backend = tokenizer.backend_tokenizer
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    other = PreTrainedTokenizerFast(tokenizer_object=backend)
    other.add_special_tokens(names)
    return other


def model_folder(kind: str, folder) -> str:
    """A tiny model of 24 tokens with its tokenizer."""
    if kind == "text8":
        tokenizer = text8_tokenizer(24)
    elif kind == "sub-words":
        tokenizer = AutoTokenizer.from_pretrained(checkpoint("edlm-books"))
    else:
        tokenizer = bert_like_tokenizer()

    torch.manual_seed(0)
    config = MDLMConfig(
        vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, bos_token_id=tokenizer.bos_token_id,
        model_length=24, hidden_dim=8, cond_dim=4, n_blocks=1, n_heads=2,
    )  # fmt: skip
    MDLMForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# What the rule must decide: the corpus as it is read, and arguments of `to_blocks`
EXPECTED = {
    "text8": (normalize_text8, {"style": "crop", "start_token": True}),
    "sub-words": (None, {"style": "crop", "start_token": True}),
    "BERT": (None, {"style": "wrap"}),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_training_evaluation_and_benchmarks_cut_a_file_into_the_same_blocks(kind, tmp_path):
    folder = model_folder(kind, tmp_path / "model")
    file = tmp_path / "my.txt"
    file.write_text(TEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MDLMForMaskedLM.from_pretrained(folder)

    normalize, options = EXPECTED[kind]
    expected = to_blocks(load_corpus(str(file), normalize=normalize), tokenizer, 24, **options)["input_ids"][:]
    assert len(expected) > 20

    data = DataArguments(str(file), eval_dataset=str(file))
    chosen = choose_tokenizer(data, folder)
    training, held_out = load_sets(data, chosen)
    assert training["input_ids"][:].tolist() == held_out["input_ids"][:].tolist() == expected

    settings = EvaluationSettings(model=folder, dataset=str(file), device="cpu")
    measured, _ = load_texts(settings, tokenizer, model.config)
    assert measured[: len(expected)] == expected and len(measured) <= len(expected) + 1

    assert load_blocks(str(file), tokenizer, model.config, 24).blocks["input_ids"][:] == expected
    assert blocks_for(str(file), tokenizer, model.config)["input_ids"][:] == expected


def test_every_command_reads_the_column_that_is_given(tmp_path):
    folder = model_folder("sub-words", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MDLMForMaskedLM.from_pretrained(folder)
    only_bodies, both = tmp_path / "bodies.parquet", str(tmp_path / "both.parquet")
    datasets.Dataset.from_dict({"text": [TEXT, TEXT[:100]]}).to_parquet(only_bodies)
    datasets.Dataset.from_dict({"title": ["Tyger", "Lamb"], "body": [TEXT, TEXT[:100]]}).to_parquet(both)

    expected = blocks_for(str(only_bodies), tokenizer, model.config)["input_ids"][:]
    assert blocks_for(both, tokenizer, model.config, text_column="body")["input_ids"][:] == expected

    data = DataArguments(both, eval_dataset=both, text_column="body")
    training, held_out = load_sets(data, choose_tokenizer(data, folder))
    assert training["input_ids"][:].tolist() == held_out["input_ids"][:].tolist() == expected

    settings = EvaluationSettings(model=folder, dataset=both, device="cpu", text_column="body")
    measured, _ = load_texts(settings, tokenizer, model.config)
    assert measured[: len(expected)] == expected

    # Without the flag, a benchmark says that it is missing. A protocol beside the file knows its own column
    options = {"model": folder, "data": (both,), "vocabulary": both, "device": "cpu"}
    without = Study(StudySettings(**options), tmp_path / "study")
    with pytest.raises(ValueError, match="text_column, one of title, body"):
        assert without.texts
    of_bodies = Study(StudySettings(**options, text_column="body"), tmp_path / "study")
    of_titles = Study(StudySettings(**options, text_column="title"), tmp_path / "study")
    assert of_bodies.texts[0].blocks["input_ids"][:] == expected
    assert of_titles.vocabulary == {"tyger", "lamb"} and "night" in of_bodies.vocabulary
    assert of_titles.vocabulary_digest != of_bodies.vocabulary_digest
    assert load_paragraphs(both, tokenizer, "title") == ["Tyger", "Lamb"]
    assert reading_of("text8", "body")["text_column"] is None


def test_a_study_cuts_every_set_as_its_model_is_sampled(tmp_path, monkeypatch):
    """A protocol that crops, beside a model that wraps: its AR samples begin and end like the texts."""
    folder = model_folder("BERT", tmp_path / "model")
    corpus = datasets.Dataset.from_dict({"text": [TEXT]})
    monkeypatch.setattr("edlm_hf.data.block_rules.load_corpus", lambda *_, **__: corpus)
    study = Study(NetworkSettings(model=folder, data=("text8",)), tmp_path / "study")
    assert PROTOCOLS["text8"].style == "crop" and study.wraps
    tokenizer = study.tokenizer
    for row in study.texts[0].blocks["input_ids"][:]:
        assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.mark.parametrize("name", ["text8", "openwebtext", "wikitext2"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_a_protocol_is_cut_as_published_where_the_tokenizer_can(kind, name, tmp_path):
    folder = model_folder(kind, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = MDLMForMaskedLM.from_pretrained(folder).config
    rule = block_rule(name, tokenizer, config)
    assert rule.length == 24 < PROTOCOLS[name].length
    assert rule.style == ("crop" if kind != "BERT" else PROTOCOLS[name].style)
    assert rule.normalize_text8 == (kind == "text8" and name != "text8")

    data = DataArguments(name)
    choose_tokenizer(data, folder)
    assert (data.length, data.style, data.start_token) == (rule.length, rule.style, rule.start_token)
    assert bool(data.normalize_text8) == rule.normalize_text8


def test_choices_come_before_what_would_be_decided():
    tokenizer = text8_tokenizer(24)
    config = SimpleNamespace(bos_token_id=27, eos_token_id=None, max_position_embeddings=24)
    choices = {"length": 8, "style": "wrap", "start_token": False, "normalize_text8": False}
    rule = block_rule("my.txt", tokenizer, config, **choices)
    assert {name: getattr(rule, name) for name in choices} == choices
    assert block_rule("text8", tokenizer).length == 256
    with pytest.raises(ValueError, match="Neither the model nor the corpus says how long texts are: pass length"):
        block_rule("my.txt", tokenizer).cut(datasets.Dataset.from_dict({"text": ["a"]}), tokenizer)


def test_characters_that_text8_does_not_have_are_counted_on_stderr(tmp_path, capfd):
    file = tmp_path / "my.txt"
    file.write_text("Café, 12!\n")  # an accent, a comma and an exclamation mark
    tokenizer = text8_tokenizer(4)
    rule = block_rule(str(file), tokenizer)
    assert rule.load(str(file), "train")["text"][:] == [normalize_text8(file.read_text())]
    assert "These are 3 of its 10 characters" in capfd.readouterr().err

    file.write_text("all of these are there")
    rule.load(str(file), "train")
    assert "text8" not in capfd.readouterr().err


def test_an_energy_of_the_checkpoint_that_ships_is_trained_on_its_kind_of_blocks(tmp_path):
    """Ids of the rows begin with the start token and have the length that the model was trained on."""
    file = tmp_path / "my.txt"
    file.write_text(20 * TEXT)
    data = DataArguments(str(file))
    tokenizer = choose_tokenizer(data, "edlm-books")
    training, _ = load_sets(data, tokenizer)
    config = EDLMForMaskedDiffusion.from_pretrained(checkpoint("edlm-books")).config
    first = training[0]["input_ids"].tolist()
    assert len(first) == config.max_position_embeddings == 256 and first[0] == config.bos_token_id
    assert tokenizer.decode(first, skip_special_tokens=True).startswith('Der Café-Besitzer said: "Tyger, Tyger – 2')


@pytest.mark.parametrize(
    ("source", "length", "message"),
    [(["one.txt"], None, "source is a list"), ("one.txt", 2.5, "length is 2.5, but it must be a whole number")],
)
def test_what_is_no_corpus_or_no_length_is_refused(source, length, message):
    with pytest.raises(ValueError, match=message):
        blocks_for(source, text8_tokenizer(), length=length)


def test_rows_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer is a NoneType, but a tokenizer of transformers"):
        blocks_for("my.txt", None, length=3)
