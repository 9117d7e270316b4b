"""A cache of the Hugging Face Hub made by hand: tiny random models under the names that the documentation uses.

With HF_HUB_CACHE pointing there and HF_HUB_OFFLINE=1, `from_pretrained(name)` finds them without a network. They have
the architecture, the vocabulary size and the special tokens of the models whose names they bear; widths, depths,
lengths and weights are those of tests, and the tokenizers know single characters instead of words.
"""

import itertools
import json
import string
from dataclasses import replace
from pathlib import Path

from published import GOLDEN, randomised, tiny_gpt2
from published_families import PUBLISHED, Published
from published_tokenizers import ALL_BYTES, write_fast, write_slow
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

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
    # The last one is a space
    words = itertools.product(f"{string.ascii_lowercase}{string.digits}\u0120", repeat=3)
    symbols += ["".join(word) for word in itertools.islice(words, 50_256 - len(symbols))]
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*symbols, end])}, []))
    backend.add_special_tokens([AddedToken(end, normalized=False, special=True)])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        unk_token=end,
    )


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

    write_published(cache)


def write_published(cache: Path) -> None:
    """LLaDA, Dream and DiffuGPT in their published layouts, and the causal model that Dream was made of."""
    mask, end, start = range(len(ALL_BYTES), len(ALL_BYTES) + 3)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokens = {"mask_token_id": mask, "eos_token_id": end, "pad_token_id": end}

    folder = snapshot(cache, "GSAI-ML/LLaDA-8B-Instruct")
    write_fast(folder, ALL_BYTES, ["<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>"], **ends)
    resized("LLaDA", vocab_size=start + 1, embedding_size=start + 6, **tokens).write(
        folder,
        num_files=2,
    )

    folder = snapshot(cache, "Dream-org/Dream-v0-Base-7B")
    named = {"mask_token": "<|mask|>", "bos_token": "<|beginoftext|>"}
    write_slow(folder, ALL_BYTES, ["<|mask|>", "<|endoftext|>", "<|beginoftext|>"], **ends, **named)
    resized("Dream", vocab_size=start + 1, bos_token_id=end, **tokens).write(folder, num_files=2)

    folder = snapshot(cache, "Qwen/Qwen2.5-7B")
    sizes = {"vocab_size": start + 1, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 3 * LENGTH}
    Qwen2ForCausalLM(Qwen2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)

    folder = snapshot(cache, "diffusionfamily/diffugpt-s")
    diffugpt = resized(
        "DiffuGPT",
        rows=50_257,
        vocab_size=50_257,
        bos_token_id=50_256,
        eos_token_id=50_256,
    )
    diffugpt.write(folder)
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"mask_token": tokenizer.convert_ids_to_tokens(10_541)})
    tokenizer.save_pretrained(folder)


def resized(name: str, **changes) -> Published:
    """A published family with other settings in its config.json."""
    return replace(PUBLISHED[name], config=PUBLISHED[name].config | changes)


def letters() -> BertTokenizerFast:
    alphabet = string.ascii_lowercase
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *alphabet, *(f"##{letter}" for letter in alphabet)]
    return BertTokenizerFast(vocab={symbol: i for i, symbol in enumerate(symbols)})


def write_bert(folder: Path) -> None:
    tokenizer = letters()
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = BertConfig(**sizes, intermediate_size=8, max_position_embeddings=LENGTH)
    BertForMaskedLM(config).save_pretrained(folder)
