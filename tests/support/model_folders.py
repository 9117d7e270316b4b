"""Small models in folders, with their tokenizer, and what can happen to such a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from published import randomised
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 16
TOKENIZER = text8_tokenizer(LENGTH)
OTHERS = {
    "bert": (BertConfig, BertForMaskedLM, LENGTH),
    # Positions are counted from pad_token_id + 1 on
    "roberta": (RobertaConfig, RobertaForMaskedLM, LENGTH + 28),
    "electra": (ElectraConfig, ElectraForMaskedLM, LENGTH),
}


def write_model(kind: str, folder: Path) -> Path:
    """A model and its tokenizer: mdlm, causal, edlm, a kind of OTHERS, or whole-KIND, a composite around that."""
    torch.manual_seed(0)
    if kind.startswith("whole-"):
        model = EDLMForMaskedDiffusion.from_components(
            other_network(kind.removeprefix("whole-")),
            tokenizer=TOKENIZER,
        )
    elif kind in OTHERS:
        model = other_network(kind)
    else:
        sizes = {
            "vocab_size": len(TOKENIZER),
            "bos_token_id": TOKENIZER.bos_token_id,
            "model_length": LENGTH,
        }
        sizes |= {"hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
        causal = kind == "causal"
        model = (MDLMForCausalLM if causal else MDLMForMaskedLM)(MDLMConfig(**sizes, causal=causal))
        if kind == "edlm":
            model = EDLMForMaskedDiffusion.from_components(model, energy_type="nce")

    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def other_network(kind: str):
    """A masked language model of transformers, whose configuration does not say which token is the mask."""
    config, network, positions = OTHERS[kind]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    start = TOKENIZER.bos_token_id
    tokens = {
        "vocab_size": len(TOKENIZER),
        "pad_token_id": start,
        "bos_token_id": start,
        "eos_token_id": None,
    }
    return randomised(network(config(**sizes, **tokens, max_position_embeddings=positions)))


def change(name: str, **values) -> Callable[[Path], None]:
    """Set values in a JSON file, and in config.json also those of the denoiser inside it."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.update(values)
        if "denoiser_config" in content and "denoiser_config" not in values:
            content["denoiser_config"].update(values)
        (folder / name).write_text(json.dumps(content))

    return do


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return do


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return do
