"""Networks for speculative sampling, with prompts of unequal length."""

import torch
import transformers as hf
from published import randomised, tiny_causal, tiny_denoiser
from speculation import combine

VOCABULARY, LENGTH, MASK_ID = 17, 40, 16
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
CAUSAL = {
    "mdlm": lambda: tiny_causal(vocab_size=VOCABULARY, mask_token_id=MASK_ID, model_length=LENGTH, bos_token_id=0),
    "llama": lambda: randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)), seed=2),
    "window": lambda: randomised(hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=8)), seed=3),
}
PROMPTS = torch.tensor([[0, 3, 5, 1, 9, 2], [7, 0, 0, 0, 0, 0], [4, 8, 8, 2, 0, 0]])
RAGGED = {
    "attention_mask": torch.tensor([[1] * 6, [1] + [0] * 5, [1] * 4 + [0] * 2]),
    "max_new_tokens": 30,
    "eos_token_id": None,
    "pad_token_id": 15,
}


def with_causal(name, **choices):
    sizes = {"vocab_size": VOCABULARY, "mask_token_id": MASK_ID, "model_length": LENGTH} | choices
    return combine(tiny_denoiser(**sizes), CAUSAL[name]()).double()
