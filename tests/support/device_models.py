"""Models of every kind on the CPU and on a device, with prompts, and their tokens compared."""

import torch
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from transformers import BertConfig, BertForMaskedLM, FNetConfig, FNetForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.modeling.sampler_choice import SAMPLERS

MASK = 12
HOLES = torch.tensor([[1, 2, MASK, MASK, 5, MASK], [3, MASK, 4, 0, 0, 0]])
REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
TEXTS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]])
RAGGED = {
    "input_ids": HOLES,
    "attention_mask": REAL,
    "max_new_tokens": 4,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
NOTHING = {"batch_size": 2, "max_length": 8}

# The other one draws from the autoregressive model of an energy
OF_DENOISERS = [name for name in SAMPLERS if name != "speculative"]

build = EDLMForMaskedDiffusion.from_components


def nce() -> EDLMEnergyModel:
    return randomised(EDLMEnergyModel(tiny_config()), seed=3)


def shared() -> EDLMForMaskedDiffusion:
    model = build(tiny_denoiser(), energy_type="nce", energy_weights="shared", energy_adapter_rank=2)
    randomised(model.energy_model, seed=4)
    return model


def foreign(network_class, config) -> EDLMForMaskedDiffusion:
    return build(randomised(network_class(config)), tiny_causal(bos_token_id=10), mask_token_id=MASK)


FOREIGN = {
    "vocab_size": 13,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
MODELS = {
    "mdlm": lambda: build(tiny_denoiser()),
    "time": lambda: build(tiny_denoiser(time_conditioning=True)),
    "ar": lambda: build(tiny_denoiser(), tiny_causal(bos_token_id=10)),
    "drafts": lambda: build(tiny_denoiser(draft_width=4, draft_target_dim=16), tiny_causal(bos_token_id=10)),
    "gpt2": lambda: build(tiny_denoiser(), tiny_gpt2()),
    "coar": lambda: build(tiny_denoiser(), tiny_causal(bos_token_id=10), energy_type="coar"),
    "nce": lambda: build(tiny_denoiser(), nce()),
    "revealed": lambda: build(tiny_denoiser(), nce(), energy_scope="revealed"),
    "shared": shared,
    "bert": lambda: foreign(BertForMaskedLM, BertConfig(**FOREIGN, num_attention_heads=2)),
    "sees padding": lambda: foreign(FNetForMaskedLM, FNetConfig(**FOREIGN)),
}


def both(accelerator, name: str) -> tuple[EDLMForMaskedDiffusion, EDLMForMaskedDiffusion]:
    """The same model on the CPU and on the device."""
    return MODELS[name](), accelerator.move(MODELS[name]())


def sample(model, **options):
    """What `generate()` gives for a seed."""
    return model.generate(generator=torch.Generator().manual_seed(0), **options)


def check_same_tokens(accelerator, on_cpu, on_device, **options) -> None:
    expected = sample(on_cpu, **options)
    tokens = sample(on_device, **options)
    assert tokens.device.type == accelerator.DEVICE
    assert tokens.tolist() == expected.tolist(), options
