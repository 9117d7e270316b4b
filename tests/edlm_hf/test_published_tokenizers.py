"""Tokenizers of LLaDA, Dream and their kin: no code is run, and the mask is found."""

import pytest
from published_configs import END, MASK, START, VOCABULARY
from published_families import PUBLISHED
from published_tokenizers import FEW_LETTERS, write_fast, write_slow
from transformers import AutoTokenizer

from edlm_hf import EDLMForMaskedDiffusion, load_published_denoiser, load_published_tokenizer

SPECIAL = ["<|mask|>", "<|endoftext|>", "<|startoftext|>"]  # MASK, END and START


def test_mask_of_llada_is_the_token_that_its_configuration_names(tmp_path):
    PUBLISHED["LLaDA"].write(tmp_path)
    write_fast(tmp_path, FEW_LETTERS, ["<|mdm_mask|>", *SPECIAL[1:]], eos_token="<|endoftext|>")
    tokenizer = load_published_tokenizer(str(tmp_path))
    assert (tokenizer.mask_token, tokenizer.mask_token_id, tokenizer.eos_token_id) == ("<|mdm_mask|>", MASK, END)
    assert len(tokenizer) == 23

    denoiser = load_published_denoiser(str(tmp_path), dtype="float32")
    model = EDLMForMaskedDiffusion.from_components(denoiser, tokenizer=tokenizer)
    assert model.config.absent_token_ids == [[23, VOCABULARY + 3]]
    tokens = model.generate(**tokenizer("abc <|mdm_mask|>d", return_tensors="pt"), eos_token_id=None)
    assert MASK not in tokens


def test_mask_that_only_the_tokenizer_knows_is_taken_from_it(tmp_path):
    for name in ("LLaDA-MoE", "A2D-Qwen3", "DiffuGPT"):
        folder = tmp_path / name
        PUBLISHED[name].write(folder)
        stated = {"mask_token": "<|mask|>"} if name == "DiffuGPT" else {}
        write_fast(folder, FEW_LETTERS, SPECIAL, **stated)
        assert load_published_denoiser(str(folder)).config.mask_token_id == MASK
        assert load_published_tokenizer(str(folder)).mask_token_id == MASK

    write_fast(folder, FEW_LETTERS, SPECIAL[1:])
    with pytest.raises(ValueError, match="says which token is the mask.*mask_token_id="):
        load_published_denoiser(str(folder))


def test_tokenizer_of_dream_needs_no_code(tmp_path):
    """vocab.json, merges.txt and the table of added tokens, in a class that transformers has."""
    PUBLISHED["Dream"].write(tmp_path)
    named = {"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_slow(tmp_path, FEW_LETTERS, SPECIAL, **named, bos_token="<|startoftext|>")

    tokenizer = load_published_tokenizer(str(tmp_path))
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (MASK, END, START)
    ids = tokenizer("abc <|mask|>d").input_ids
    assert ids == [1, 2, 3, 0, MASK, 4] and tokenizer.decode(ids) == "abc <|mask|>d"

    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("abc <|mask|>d").input_ids == ids
