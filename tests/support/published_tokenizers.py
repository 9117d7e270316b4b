"""Tokenizers of single bytes, in the files in which LLaDA (tokenizer.json) and Dream (vocab.json) publish theirs."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FEW_LETTERS = ["\u0120", *"abcdefghijklmnopqrs"]  # the first is the space
ALL_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_fast(folder: Path, letters: list[str], special: list[str], **named: str) -> None:
    """tokenizer.json: the letters, then the special tokens. `named` are those that it names: mask_token, ..."""
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)


def write_slow(folder: Path, letters: list[str], special: list[str], **named: str) -> None:
    """vocab.json, merges.txt, and special tokens in tokenizer_config.json, which asks for a class of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {
        str(len(letters) + i): {"content": token, "special": True, "normalized": False}
        for i, token in enumerate(special)
    }
    settings = {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added}
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    (folder / "tokenization_dream.py").write_text("raise RuntimeError('this ran')")
