"""Checkpoints in the published layout, written from the golden weights, and other small models."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def write_checkpoint(folder: Path, weights: str, **changes) -> Path:
    """A folder with a config.json in the format of kuleshov-group/mdlm-owt and the golden weights `weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((GOLDEN / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / f"{weights}.safetensors", folder / "model.safetensors")
    return folder


def tiny_config(**changes) -> MDLMConfig:
    sizes = {"vocab_size": 13, "hidden_dim": 16, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "model_length": 12}
    return MDLMConfig(**(sizes | {"dropout": 0.0} | changes))


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with all parameters random (nothing left at zero), in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def tiny_denoiser(**changes) -> MDLMForMaskedLM:
    return randomised(MDLMForMaskedLM(tiny_config(**changes)))


def tiny_causal(**changes) -> MDLMForCausalLM:
    return randomised(MDLMForCausalLM(tiny_config(causal=True, **changes)), seed=1)


def tiny_gpt2(**changes) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
    return randomised(
        GPT2LMHeadModel(GPT2Config(**(sizes | {"bos_token_id": 11, "eos_token_id": 11} | changes))), seed=2
    )


def with_ar(**choices) -> EDLMForMaskedDiffusion:
    """A tiny composite with an autoregressive energy."""
    choices = {"energy_type": "ar"} | choices
    return EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10), **choices)


def seed(n: int = 0) -> torch.Generator:
    """The `generator` of a call of `generate()`."""
    return torch.Generator().manual_seed(n)
