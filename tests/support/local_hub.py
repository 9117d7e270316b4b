"""A cache of the Hugging Face Hub made by hand: tiny random models under the names that the documentation uses.

With HF_HUB_CACHE pointing there and HF_HUB_OFFLINE=1, `from_pretrained(name)` finds them without a network. They have
the architecture, the vocabulary size and the special tokens of the models whose names they bear; widths, depths,
lengths and weights are those of tests, and the tokenizers know single characters instead of words.
"""

import itertools
import json
import string
from pathlib import Path

from foreign_models import LLaDAConfig, LLaDAModelLM
from published import GOLDEN, randomised, tiny_gpt2
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, PreTrainedTokenizerFast

from edlm_hf import MDLMConfig, MDLMForMaskedLM

COMMIT = "0" * 40
LENGTH = 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")


def snapshot(cache: Path, name: str) -> Path:
    """The folder of the only commit of the repository `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """50,257 ids as GPT-2 has them: bytes first, end-of-text last. The words in between are drawn but never read."""
    end, symbols = "<|endoftext|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    words = itertools.product(f"{string.ascii_lowercase}{string.digits}\u0120", repeat=3)  # the last one is a space
    symbols += ["".join(word) for word in itertools.islice(words, 50_256 - len(symbols))]
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*symbols, end])}, []))
    backend.add_special_tokens([AddedToken(end, normalized=False, special=True)])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)


def write_hub(cache: Path) -> None:
    """Write the cache that the pages are run with."""
    # The denoiser: configuration and weights in the published format, no tokenizer beside them (and known to be none).
    folder = snapshot(cache, "kuleshov-group/mdlm-owt")
    sizes = {"vocab_size": 50_258, "hidden_dim": 8, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "model_length": LENGTH}
    (folder / "config.json").write_text(json.dumps(json.loads((GOLDEN / "config.json").read_text()) | sizes))
    denoiser = randomised(MDLMForMaskedLM(MDLMConfig(**sizes)))
    save_file(denoiser.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    missing = folder.parents[1] / ".no_exist" / COMMIT
    missing.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        (missing / name).touch()

    sizes = {"vocab_size": 50_257, "n_embd": 8, "n_layer": 1, "n_positions": 3 * LENGTH}
    causal = tiny_gpt2(**sizes, bos_token_id=50_256, eos_token_id=50_256)
    for name in ("gpt2", "distilbert/distilgpt2"):
        folder = snapshot(cache, name)
        causal.save_pretrained(folder)
        gpt2_tokenizer().save_pretrained(folder)

    write_bert(snapshot(cache, "google-bert/bert-base-uncased"))

    folder = snapshot(cache, "GSAI-ML/LLaDA-8B-Instruct")
    tokenizer = letters()
    tokenizer.save_pretrained(folder)
    config = LLaDAConfig(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id)
    LLaDAModelLM(config).save_pretrained(folder)


def letters() -> BertTokenizerFast:
    alphabet = string.ascii_lowercase
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *alphabet, *(f"##{letter}" for letter in alphabet)]
    return BertTokenizerFast(vocab={symbol: i for i, symbol in enumerate(symbols)})


def write_bert(folder: Path) -> None:
    tokenizer = letters()
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=8, max_position_embeddings=LENGTH)
    BertForMaskedLM(config).save_pretrained(folder)
