"""The corpora of the papers as data: their place on the Hub, how text is cleaned and cut, and the unit of results.

They follow the published evaluation (MDLM, arXiv 2406.07524, whose code EDLM, arXiv 2410.21357, builds
on). Models trained on OpenWebText are tested without further training on seven other corpora, all cut
into wrapped blocks of 1,024 GPT-2 tokens with an end-of-text token after every row of the dataset.
Text8 is cut into plain blocks of 256 characters. One thing differs: published code drops the
incomplete block at the end of every 1,000 rows. Here only the one at the end of the corpus is dropped.

Several of the original datasets are loading scripts, which `datasets` no longer runs. They are read
from files that the Hub keeps beside them: its own conversion to parquet (the branch
`refs/convert/parquet`), or a commit with the data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edlm_hf.data import detokenizers


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one corpus is loaded, cut and reported.

    Attributes:
        name: under which `load_corpus` finds it.
        path: the dataset on the Hub, "owner/name".
        splits: the splits that can be loaded.
        evaluation: the split whose likelihood the papers report.
        config: configuration of the dataset, where it has several.
        revision: branch or commit, the newest unless given.
        files: pattern of the files of a split ("{split}" in it) at that revision, where the dataset
            itself cannot be loaded.
        text_column: the column with the text.
        clean: function from the text of the dataset to the text that is modelled.
        held_out: this many rows at the end of the "train" split are the validation split, the rows
            before them the training split. 0 where the dataset has its own splits.
        rows: of the "train" split, needed with `held_out` to find the end of a stream.
        style: how `to_blocks` cuts it, "wrap" or "crop".
        length: tokens per block.
        unit: of the results in the papers: perplexity per token, or bits per character.
        source: the origin of the numbers and splits, and cautions before comparing.
    """

    name: str
    path: str
    splits: tuple[str, ...]
    evaluation: str
    config: str | None = None
    revision: str | None = None
    files: str | None = None
    text_column: str = "text"
    clean: Callable[[str], str] | None = None
    held_out: int = 0
    rows: int | None = None
    style: Literal["wrap", "crop"] = "wrap"
    length: int = 1024
    unit: Literal["perplexity", "bits per character"] = "perplexity"
    source: str


# The branch of a dataset on which the Hub keeps its conversion to parquet
CONVERTED = "refs/convert/parquet"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="text8",
            path="afmck/text8",
            splits=("train", "validation", "test"),
            evaluation="test",
            style="crop",
            length=256,
            unit="bits per character",
            source=(
                "The first 90, the next 5 and the last 5 million characters of Matt Mahoney's text8, as in D3PM; bits "
                "per character of the test split. The text is normalised already. For the published training crops, "
                "256 characters from a random place in 512, make blocks of 512 and crop each batch."
            ),
        ),
        Protocol(
            name="openwebtext",
            path="Skylion007/openwebtext",
            splits=("train", "validation"),
            evaluation="validation",
            held_out=100_000,
            rows=8_013_769,
            source="The last 100,000 documents are held out (MDLM; SEDD and EDLM compare on the same).",
        ),
        Protocol(
            name="ptb",
            path="ptb-text-only/ptb_text_only",
            splits=("train", "validation", "test"),
            evaluation="validation",
            revision=CONVERTED,
            files="penn_treebank/{split}/*.parquet",
            text_column="sentence",
            clean=detokenizers.ptb,
            source="Zero-shot, validation split; a row is one sentence. The dataset is a script: converted files.",
        ),
        Protocol(
            name="wikitext2",
            path="Salesforce/wikitext",
            config="wikitext-2-raw-v1",
            splits=("train", "validation", "test"),
            evaluation="validation",
            clean=detokenizers.wikitext,
            source=(
                "Zero-shot, validation split; a row is one line, empty lines included. WikiText-2 and WikiText-103 "
                "have the same validation and test articles, so that it serves for either."
            ),
        ),
        Protocol(
            name="wikitext103",
            path="Salesforce/wikitext",
            config="wikitext-103-raw-v1",
            splits=("train", "validation", "test"),
            evaluation="validation",
            clean=detokenizers.wikitext,
            source="Zero-shot, validation split, as wikitext2; only the training split is larger.",
        ),
        Protocol(
            name="lm1b",
            path="billion-word-benchmark/lm1b",
            splits=("train", "test"),
            evaluation="test",
            revision=CONVERTED,
            files="plain_text/{split}/*.parquet",
            clean=detokenizers.lm1b,
            source=(
                "Zero-shot, test split, wrapped GPT-2 tokens (models trained on it use padded sentences of 128 BERT "
                "tokens instead). The dataset is a script: converted files."
            ),
        ),
        Protocol(
            name="lambada",
            path="EleutherAI/lambada_openai",
            splits=("test",),
            evaluation="test",
            revision="879e19a2c9bb7ef03f9cf962089cf7d008f91e27",
            files="data/lambada_{split}.jsonl",
            clean=detokenizers.lambada,
            source="Zero-shot on OpenAI's file of 5,153 passages: all tokens count, not only the last word.",
        ),
        Protocol(
            name="ag_news",
            path="fancyzhx/ag_news",
            splits=("train", "test"),
            evaluation="test",
            source="Zero-shot, test split, the text as it is.",
        ),
        Protocol(
            name="pubmed",
            path="armanc/scientific_papers",
            splits=("validation", "test"),
            evaluation="validation",
            revision=CONVERTED,
            files="pubmed/{split}/*.parquet",
            text_column="article",
            clean=detokenizers.scientific_papers,
            source="Zero-shot, articles of the validation split. The dataset is a script: converted files.",
        ),
        Protocol(
            name="arxiv",
            path="armanc/scientific_papers",
            splits=("validation", "test"),
            evaluation="validation",
            revision=CONVERTED,
            files="arxiv/{split}/*.parquet",
            text_column="article",
            clean=detokenizers.scientific_papers,
            source=(
                "Zero-shot, articles of the validation split. The dataset is a script: converted files, whose training "
                "split is not complete and is left out."
            ),
        ),
    )
}
