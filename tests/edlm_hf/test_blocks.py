"""Rows of a model are cut from the documents of a corpus: no token is lost, special tokens are in their places."""

import datasets
import pytest
import torch
from small_corpora import KINDS, WORDS, A, B, C, D, E, F, P, S, corpus, random_corpus, rows, word_tokenizer
from transformers import AutoTokenizer

from edlm_hf.data import blocks, to_blocks
from edlm_hf.tokenization import TEXT8_ALPHABET, text8_tokenizer

pytestmark = pytest.mark.usefixtures("quiet_datasets")


@KINDS
def test_wrapped_rows_start_and_end_and_run_on_over_documents(streaming):
    wrapped = to_blocks(corpus("a b c", "", "d e a", streaming=streaming), word_tokenizer(), 5)
    assert rows(wrapped) == [[S, A, B, C, E], [S, E, E, D, E], [S, F, A, E, E]]
    assert wrapped.column_names == ["input_ids"]


@KINDS
def test_the_last_row_is_dropped_or_padded(streaming):
    texts = corpus("a b c", "d", streaming=streaming)
    assert rows(to_blocks(texts, word_tokenizer(), 6)) == [[S, A, B, C, E, E]]
    kept = to_blocks(texts, word_tokenizer(), 6, drop_last=False)
    assert rows(kept) == [[S, A, B, C, E, E], [S, D, E, E, P, P]]
    assert rows(kept, "attention_mask") == [[1] * 6, [1, 1, 1, 1, 0, 0]]


def test_without_a_padding_token_the_padding_is_zero_and_masked():
    kept = to_blocks(
        corpus("abc"),
        text8_tokenizer(start_token=False),
        2,
        style="crop",
        drop_last=False,
    )
    assert rows(kept) == [[1, 2], [3, 0]]
    assert rows(kept, "attention_mask") == [[1, 1], [1, 0]]


@KINDS
def test_cropped_rows_are_the_stream_with_or_without_a_start_token(streaming):
    texts = corpus(" ab", " cd e", streaming=streaming)
    assert rows(to_blocks(texts, text8_tokenizer(), 4, style="crop")) == [[0, 1, 2, 0], [3, 4, 0, 5]]
    started = to_blocks(texts, text8_tokenizer(), 4, style="crop", start_token=True)
    assert rows(started) == [[27, 0, 1, 2], [27, 0, 3, 4]]


@KINDS
@pytest.mark.parametrize("documents", [1, 3, 128])
@pytest.mark.parametrize("style", ["wrap", "crop"])
def test_every_token_is_in_one_row_in_order_however_the_work_is_batched(
    style,
    documents,
    streaming,
    monkeypatch,
):
    monkeypatch.setattr(blocks, "DOCUMENTS", documents)
    texts = [" ".join(text) for text in random_corpus(50, "abcde")]
    length = 9
    expected = []
    for text in texts:
        expected += [WORDS.index(word) for word in text.split()] + [E] * (style == "wrap")
    body = slice(1, -1) if style == "wrap" else slice(None)
    cut = to_blocks(corpus(*texts, streaming=streaming), word_tokenizer(), length, style=style)
    found = [token for row in rows(cut) for token in row[body]]
    assert len(expected) - len(found) < length
    assert found == expected[: len(found)]

    kept = to_blocks(
        corpus(*texts, streaming=streaming),
        word_tokenizer(),
        length,
        style=style,
        drop_last=False,
    )
    assert rows(kept)[:-1] == rows(cut)
    texts_only = [row["input_ids"][: sum(row["attention_mask"])][body] for row in kept]
    assert [token for row in texts_only for token in row] == expected


def test_more_documents_than_fit_one_batch_give_the_rows_of_one_pass():
    texts = random_corpus(1500, TEXT8_ALPHABET)
    ids = text8_tokenizer()("".join(texts), add_special_tokens=False).input_ids
    for length in (1, 7, 256):
        cut = to_blocks(corpus(*texts), text8_tokenizer(), length, style="crop")
        assert rows(cut) == [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def test_rows_are_small_integers_and_int64_as_tensors():
    cut = to_blocks(corpus("abcd"), text8_tokenizer(), 2, style="crop")
    assert cut.features == {"input_ids": datasets.Sequence(datasets.Value("uint8"))}
    assert torch.equal(cut.with_format("torch")[:]["input_ids"], torch.tensor([[1, 2], [3, 4]]))


def test_text_that_spells_a_special_token_stays_text():
    for tokenizer in (text8_tokenizer(), word_tokenizer()):
        cut = to_blocks(corpus("a [MASK] b <s> </s> [PAD]"), tokenizer, 4, style="crop")
        special = set(tokenizer.all_special_ids)
        assert not special & {token for row in rows(cut) for token in row}


@pytest.mark.parametrize("start_token", [True, False])
def test_the_fast_path_of_the_text8_alphabet_gives_the_ids_of_the_tokenizer(start_token, tmp_path):
    text8_tokenizer(start_token=start_token).save_pretrained(tmp_path)
    texts = [
        "",
        "The caf\u00e9 (No. 5)\n",
        "\u0130\u212a\u4e2d\U0001f600e\u0301",
        "x\x00\x7f{[`@",
        *random_corpus(9, "aZ 9\u00df"),
    ]

    for tokenizer in (
        text8_tokenizer(start_token=start_token),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        encoder = blocks.Encoder(tokenizer, separator=None)
        assert encoder.table is not None
        fast = encoder(texts).tolist()
        encoder.table = None
        assert fast == encoder(texts).tolist()

    assert blocks.Encoder(word_tokenizer(), separator=E).table is None


def test_the_fast_path_is_not_taken_where_words_were_added():
    tokenizer = text8_tokenizer()
    tokenizer.add_tokens(["the"])
    encoder = blocks.Encoder(tokenizer, separator=None)
    expected = tokenizer(["the day"], add_special_tokens=False)["input_ids"][0]
    assert encoder.table is None and encoder(["the day"]).tolist() == expected


def test_cls_and_sep_stand_in_for_start_and_end():
    tokenizer = word_tokenizer(bos_token=None, eos_token=None, cls_token="<s>", sep_token="</s>")
    assert rows(to_blocks(corpus("a b"), tokenizer, 5)) == [[S, A, B, E, E]]


def test_what_cannot_be_cut_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="style='chop' is unknown; use 'wrap' or 'crop'"):
        to_blocks(corpus("a"), word_tokenizer(), 8, style="chop")
    with pytest.raises(ValueError, match="no column 'text' but words"):
        to_blocks(datasets.Dataset.from_dict({"words": ["a"]}), word_tokenizer(), 8)
    with pytest.raises(ValueError, match="length=2 has no room for text beside 2 special tokens"):
        to_blocks(corpus("a"), word_tokenizer(), 2)
    with pytest.raises(ValueError, match="neither eos_token nor sep_token.*style='crop'"):
        to_blocks(corpus("a"), text8_tokenizer(), 8)
    with pytest.raises(ValueError, match="neither bos_token nor cls_token"):
        to_blocks(corpus("a"), text8_tokenizer(start_token=False), 8, style="crop", start_token=True)


@KINDS
@pytest.mark.parametrize(("texts", "count"), [((), 0), (("", ""), 0), (("abc",), 3)])
def test_a_corpus_too_short_for_a_row_is_refused(texts, count, streaming):
    with pytest.raises(ValueError, match=f"has {count} tokens, and a row of length=8 takes 8"):
        rows(to_blocks(corpus(*texts, streaming=streaming), text8_tokenizer(), 8, style="crop"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["a", "b"]}, "dataset is a list, but a corpus of load_corpus.*from_dict"),
        ({"dataset": {"train": corpus("a")}}, "dataset is a dict"),
        ({"tokenizer": None}, "tokenizer is a NoneType, but a tokenizer of transformers"),
        ({"length": None}, "length is None, but it must be a positive integer"),
        ({"length": 2.5}, "length is 2.5"),
        ({"length": True}, "length is True"),
    ],
)
def test_blocks_are_made_of_a_corpus_a_tokenizer_and_a_whole_number(changes, message):
    arguments = {"dataset": corpus("a b"), "tokenizer": text8_tokenizer(), "length": 2} | changes
    with pytest.raises(ValueError, match=message):
        to_blocks(**arguments, style="crop")
