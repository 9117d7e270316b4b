import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edlm_hf import MDLMConfig
from edlm_hf.tokenization import (
    TEXT8_ALPHABET,
    add_mask_token,
    check_mask_token,
    normalize_text8,
    text8_tokenizer,
    train_subword_tokenizer,
)

EDGE_CASES = ["", " ", "   ", "a", " a", "a ", "  two  spaces  ", TEXT8_ALPHABET, "the quick brown fox"]


def byte_level_tokenizer(length=300):
    """A tiny tokenizer of GPT-2's kind: byte-level BPE, start = end token, no mask token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=length,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>"],
    )
    backend.train_from_iterator(["the theory of the thing", "a cat and another cat sat"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def random_texts(count=200):
    generator = random.Random(0)
    return ["".join(generator.choices(TEXT8_ALPHABET, k=generator.randrange(40))) for _ in range(count)]


def test_normalize_text8_follows_the_script_of_text8():
    assert normalize_text8("Room 42, please!") == " room four two please"
    assert normalize_text8("0123456789") == " zero one two three four five six seven eight nine"
    assert normalize_text8("a1b") == " a one b"
    assert normalize_text8(" many   spaces\n\tand lines ") == " many spaces and lines"
    assert normalize_text8("caf\u00e9 na\u00efve \u212a") == " caf na ve"  # the Kelvin sign is no k
    assert normalize_text8("") == normalize_text8(" ") == normalize_text8("?!") == ""


def test_normalized_text_is_in_the_alphabet_and_stays_as_it_is():
    for text in ["Tr\u00e8s 3x \u2014 done.", " x", "A"]:
        normal = normalize_text8(text)
        assert re.fullmatch("( [a-z]+)*", normal)
        assert normalize_text8(normal) == normal


@pytest.mark.parametrize("start_token", [True, False])
def test_text8_ids_are_space_then_letters_and_the_mask_is_last(start_token):
    tokenizer = text8_tokenizer(start_token=start_token)
    assert tokenizer(TEXT8_ALPHABET, add_special_tokens=False).input_ids == list(range(27))
    assert len(tokenizer) == tokenizer.vocab_size == 28 + start_token
    assert tokenizer.mask_token_id == tokenizer.vocab_size - 1
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == (27 if start_token else None)
    check_mask_token(tokenizer, MDLMConfig(vocab_size=len(tokenizer)))


@pytest.mark.parametrize("start_token", [True, False])
def test_text8_is_lossless_over_its_alphabet(start_token):
    tokenizer = text8_tokenizer(start_token=start_token)
    for text in EDGE_CASES + random_texts():
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text) + start_token
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_text8_rows_begin_with_the_start_token_unless_asked_not_to():
    tokenizer = text8_tokenizer()
    assert tokenizer("ab").input_ids == [27, 1, 2]
    assert tokenizer("ab", add_special_tokens=False).input_ids == [1, 2]
    assert text8_tokenizer(start_token=False)("ab").input_ids == [1, 2]


def test_text8_reads_capitals_and_turns_the_rest_into_spaces_one_by_one():
    tokenizer = text8_tokenizer()
    for text, expected in [
        ("AbC", "abc"),
        ("a1, b", "a   b"),
        ("line\nend\t", "line end "),
        ("\u00e9\u0130\u212a\u4e2d\U0001f600", " " * 5),
        ("e\u0301", "e "),
    ]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == expected


def test_text8_mask_in_a_string_is_the_mask_token():
    tokenizer = text8_tokenizer()
    ids = tokenizer(" [MASK][MASK] a[MASK]", add_special_tokens=False).input_ids
    assert ids == [0, 28, 28, 0, 1, 28]
    assert tokenizer.decode(ids) == " [MASK][MASK] a[MASK]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "  a"


def test_text8_pads_and_truncates():
    tokenizer = text8_tokenizer(model_max_length=6)
    batch = tokenizer(["a", "abc"], padding=True)
    assert batch.input_ids == [[27, 1, 27, 27], [27, 1, 2, 3]]
    assert batch.attention_mask == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert tokenizer("abcdefgh", truncation=True).input_ids == [27, 1, 2, 3, 4, 5]


def test_added_mask_token_takes_the_next_free_id():
    tokenizer = byte_level_tokenizer()
    size, text = len(tokenizer), " the cat,  12 \n caf\u00e9 "
    before = tokenizer(text).input_ids
    assert tokenizer.mask_token is None
    assert add_mask_token(tokenizer) is tokenizer
    assert tokenizer.mask_token_id == size == len(tokenizer) - 1
    assert tokenizer(text).input_ids == before
    assert tokenizer.decode(before) == text
    assert tokenizer("a[MASK] b").input_ids.count(size) == 1
    assert tokenizer.decode(tokenizer("a[MASK] b").input_ids) == "a[MASK] b"
    check_mask_token(tokenizer, MDLMConfig(vocab_size=size + 1))


def test_an_existing_mask_token_is_kept():
    tokenizer = add_mask_token(text8_tokenizer(), token="<mask>")
    assert (tokenizer.mask_token, len(tokenizer)) == ("[MASK]", 29)


def test_mask_token_that_is_not_the_models_is_refused():
    with pytest.raises(ValueError, match="has id 28, but the model masks with id 5"):
        check_mask_token(text8_tokenizer(), MDLMConfig(vocab_size=29, mask_token_id=5))
    with pytest.raises(ValueError, match=r"no mask token.*add_mask_token"):
        check_mask_token(byte_level_tokenizer(), SimpleNamespace(mask_token_id=300))


def subwords(vocab_size=300):
    return train_subword_tokenizer(
        ["the theory of the thing", "a cat and another cat sat"] * 50,
        vocab_size,
    )


def test_learned_subwords_lose_nothing_of_any_text_and_start_with_the_start_token():
    tokenizer = subwords(270)
    for text in [
        *EDGE_CASES,
        "Tab\tand\n\nparagraph",
        "na\u00efve \u2014 \u4e2d \U0001f600",
        *random_texts(50),
    ]:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == tokenizer.pad_token_id == 268
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == 270 and tokenizer.mask_token_id == 269
    assert len(tokenizer("the theory").input_ids) < 1 + len("the theory")


def test_learned_subwords_are_the_same_for_the_same_texts_and_load_without_this_package(tmp_path):
    tokenizer = subwords(270)
    assert tokenizer.get_vocab() == subwords(270).get_vocab()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("the cat [MASK] sat").input_ids == tokenizer("the cat [MASK] sat").input_ids
    assert again.mask_token_id == 269


@pytest.mark.parametrize("vocab_size, message", [(257, "at least 258"), (5000, "Use more text")])
def test_subwords_that_cannot_be_learned_are_refused(vocab_size, message):
    with pytest.raises(ValueError, match=message):
        subwords(vocab_size)


READ_BACK = """
import sys
sys.modules["edlm_hf"] = None  # as where it is not installed
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for text in sys.argv[2:]:
    ids = tokenizer(text).input_ids
    print(repr((ids, tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids))))
print(tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, len(tokenizer))
"""


@pytest.mark.parametrize(
    "make",
    [text8_tokenizer, lambda: text8_tokenizer(start_token=False), lambda: add_mask_token(byte_level_tokenizer())],
    ids=["text8", "text8-no-start", "byte-level"],
)
def test_saved_beside_a_model_auto_tokenizer_reads_it_without_the_package(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path / "model")
    MDLMConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    texts = [*EDGE_CASES, " a[MASK]b  [MASK] "]
    expected = []
    for text in texts:
        ids = tokenizer(text).input_ids
        expected.append(
            repr(
                (
                    ids,
                    tokenizer.decode(ids, skip_special_tokens=True),
                    tokenizer.decode(ids),
                )
            )
        )

    expected.append(f"{tokenizer.mask_token_id} {tokenizer.bos_token_id} {tokenizer.pad_token_id} {len(tokenizer)}")
    result = subprocess.run(
        [sys.executable, "-c", READ_BACK, str(tmp_path / "model"), *texts],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == expected


def test_saved_tokenizer_is_the_same_after_a_second_round(tmp_path):
    text8_tokenizer(model_max_length=64).save_pretrained(tmp_path / "first")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert loaded.model_max_length == 64
    loaded.save_pretrained(tmp_path / "second")
    assert (tmp_path / "first/tokenizer.json").read_text() == (tmp_path / "second/tokenizer.json").read_text()
