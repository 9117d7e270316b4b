"""Corpora of the paper's protocols and of the Hub: what `load_dataset` is asked for, and that it is cleaned."""

import dataclasses

import datasets
import pytest
from small_corpora import rows

from edlm_hf.data import PROTOCOLS, load_corpus
from edlm_hf.data.detokenizers import ptb

pytestmark = pytest.mark.usefixtures("quiet_datasets")


@pytest.fixture
def hub(monkeypatch):
    """In place of the Hub: `load_dataset` notes its arguments and gives ten numbered rows."""
    calls = []

    def load_dataset(**arguments):
        calls.append({name: value for name, value in arguments.items() if value is not None})
        texts = [f"row {number} 's" for number in range(10)]
        dataset = datasets.Dataset.from_dict(
            {
                "text": texts,
                "sentence": texts,
                "article": texts,
                "label": [0] * 10,
            }
        )
        return dataset.to_iterable_dataset() if arguments["streaming"] else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


SOURCES = {
    "text8": {"path": "afmck/text8", "split": "test"},
    "openwebtext": {"path": "Skylion007/openwebtext", "split": "train[-100000:]"},
    "ptb": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/validation/*.parquet"
        },
        "split": "validation",
    },
    "wikitext2": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "validation"},
    "wikitext103": {"path": "Salesforce/wikitext", "name": "wikitext-103-raw-v1", "split": "validation"},
    "lm1b": {
        "path": "parquet",
        "data_files": {
            "test": "hf://datasets/billion-word-benchmark/lm1b@refs/convert/parquet/plain_text/test/*.parquet"
        },
        "split": "test",
    },
    "lambada": {
        "path": "json",
        "data_files": {
            "test": "hf://datasets/EleutherAI/lambada_openai@879e19a2c9bb7ef03f9cf962089cf7d008f91e27"
            "/data/lambada_test.jsonl"
        },
        "split": "test",
    },
    "ag_news": {"path": "fancyzhx/ag_news", "split": "test"},
    "pubmed": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/armanc/scientific_papers@refs/convert/parquet/pubmed/validation/*.parquet"
        },
        "split": "validation",
    },
    "arxiv": {
        "path": "parquet",
        "data_files": {
            "validation": "hf://datasets/armanc/scientific_papers@refs/convert/parquet/arxiv/validation/*.parquet"
        },
        "split": "validation",
    },
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_evaluation_split_of_a_protocol_is_loaded_from_the_hub_and_cleaned(name, hub):
    protocol = PROTOCOLS[name]
    loaded = load_corpus(name, protocol.evaluation)
    assert hub == [SOURCES[name] | {"streaming": False}]
    clean = protocol.clean or (lambda text: text)
    assert loaded.column_names == ["text"]
    assert rows(loaded, "text") == [clean(f"row {number} 's") for number in range(10)]


def test_the_protocols_of_the_paper():
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert all(protocol.evaluation in protocol.splits for protocol in PROTOCOLS.values())
    text8 = PROTOCOLS["text8"]
    assert (text8.style, text8.length, text8.unit) == ("crop", 256, "bits per character")
    others = {(p.style, p.length, p.unit) for p in PROTOCOLS.values() if p is not text8}
    assert others == {("wrap", 1024, "perplexity")}


def test_held_out_rows_are_the_last_ones(hub, monkeypatch):
    load_corpus("openwebtext", "train")
    assert hub == [{"path": "Skylion007/openwebtext", "split": "train[:-100000]", "streaming": False}]
    small = dataclasses.replace(PROTOCOLS["openwebtext"], rows=10, held_out=3)
    monkeypatch.setitem(PROTOCOLS, "openwebtext", small)
    splits = [rows(load_corpus("openwebtext", split, streaming=True), "text") for split in ("train", "validation")]
    assert splits == [[f"row {number} 's" for number in part] for part in (range(7), range(7, 10))]
    assert hub[-1] == {"path": "Skylion007/openwebtext", "split": "train", "streaming": True}


def test_a_streamed_protocol_is_cleaned_as_well(hub):
    streamed = load_corpus("ptb", "test", streaming=True, normalize=str.upper)
    assert rows(streamed, "text")[3] == ptb("row 3 's").upper()


def test_splits_that_a_protocol_does_not_have_are_refused():
    for name, split, available in (("lambada", "train", "test"), ("lm1b", "validation", "train, test")):
        with pytest.raises(ValueError, match=f"{name}.*no split '{split}'; it has {available}"):
            load_corpus(name, split)


def test_hub_datasets_by_id_with_or_without_a_configuration(hub):
    load_corpus("someone/stories", "test")
    load_corpus("someone/stories:long", "train[:1%]", text_column="article")
    assert hub == [
        {"path": "someone/stories", "split": "test", "streaming": False},
        {"path": "someone/stories", "name": "long", "split": "train[:1%]", "streaming": False},
    ]
