"""Networks for random calls of `generate()`: 13 tokens with the mask, and 12 positions."""

from collections.abc import Callable
from functools import cache

import torch
from foreign_models import DreamConfig, DreamModel, LLaDAConfig, LLaDAModelLM
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from transformers import (
    BertConfig,
    BertForMaskedLM,
    FNetConfig,
    FNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion

MASK, VOCABULARY, LONGEST = 12, 13, 12


def bert(config_class=BertConfig, model_class=BertForMaskedLM, **changes) -> torch.nn.Module:
    """A small masked language model of transformers, which reads 12 tokens."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    sizes |= {"max_position_embeddings": LONGEST, "num_attention_heads": 2, "pad_token_id": 0}
    return randomised(model_class(config_class(**(sizes | changes))))


def composite(denoiser: Callable, energy: Callable | None = None, **choices) -> EDLMForMaskedDiffusion:
    parts = [denoiser()] + ([energy()] if energy else [])
    return randomised(
        EDLMForMaskedDiffusion.from_components(*parts, mask_token_id=MASK, **choices),
        seed=3,
    )


def causal():
    return tiny_causal(bos_token_id=10, model_length=LONGEST + 1)


def roberta():
    return bert(RobertaConfig, RobertaForMaskedLM, max_position_embeddings=LONGEST + 2, pad_token_id=1)


NETWORKS = {
    "MDLM": tiny_denoiser,
    "MDLM with time": lambda: tiny_denoiser(time_conditioning=True),
    "NCE": lambda: composite(tiny_denoiser, lambda: randomised(EDLMEnergyModel(tiny_config()), seed=2)),
    "NCE, shared": lambda: composite(
        tiny_denoiser, energy_type="nce", energy_weights="shared", energy_adapter_rank=2, energy_scope="revealed"
    ),
    "AR": lambda: composite(tiny_denoiser, causal),
    "coAR": lambda: composite(tiny_denoiser, lambda: tiny_gpt2(n_positions=LONGEST + 1), energy_type="coar"),
    "BERT": lambda: composite(bert),
    "BERT, shifted": lambda: composite(bert, logits_shift=1),
    "BERT with GPT-2": lambda: composite(bert, lambda: tiny_gpt2(n_positions=LONGEST + 1)),
    "RoBERTa": lambda: composite(roberta),
    "FNet": lambda: composite(lambda: bert(FNetConfig, FNetForMaskedLM)),
}
FOREIGN = {
    "BERT": bert,
    "LLaDA": lambda: randomised(LLaDAModelLM(LLaDAConfig())),
    "Dream": lambda: randomised(DreamModel(DreamConfig())),
}


@cache
def network(name: str) -> torch.nn.Module:
    """In float64, where a row of a batch is equal to the row alone to the last token."""
    return NETWORKS[name]().double()


@cache
def foreign_network(name: str) -> torch.nn.Module:
    return FOREIGN[name]().double()
