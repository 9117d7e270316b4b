"""Tiny energies with LoRA adapters of PEFT, where no weight is zero, and what they are asked."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from published import tiny_denoiser
from torch import nn

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.training import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES

BASES = {
    "own": {},
    "shared": {"energy_weights": "shared"},
    "updated": {"energy_weights": "shared", "energy_adapter_rank": 3},
}
BASE = pytest.mark.parametrize("base", BASES)
SHARED = pytest.mark.parametrize("base", ["shared", "updated"])
NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor(
    [
        [[3, 1, 5, 0, 2, 7], [3, 9, 5, 0, 4, 7]],
        [[8, 2, 6, 11, 4, 9], [0, 2, 1, 10, 4, 9]],
    ]
)


def scatter(parameters, seed: int, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def new_base(base, denoiser=None) -> EDLMForMaskedDiffusion:
    """Nothing in it is zero."""
    model = EDLMForMaskedDiffusion.from_components(
        denoiser or tiny_denoiser(),
        energy_type="nce",
        **BASES[base],
    )
    scatter(model.energy_model.parameters(), seed=1)
    return model


def lora(**changes) -> LoraConfig:
    return LoraConfig(
        **({"r": 2, "target_modules": LORA_TARGET_MODULES, "modules_to_save": LORA_MODULES_TO_SAVE} | changes)
    )


def trainable(model) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted(model, seed=2, **changes) -> PeftModel:
    """The model with an adapter that is far from its start."""
    model = get_peft_model(model, lora(**changes)).eval()
    scatter(trainable(model).values(), seed)
    return model


@torch.no_grad()
def energies(model) -> torch.Tensor:
    return model.energy(CLEAN, NOISY)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(NOISY).logits


def generate(model, *args, **kwargs) -> torch.Tensor:
    return model.generate(*args, generator=torch.Generator().manual_seed(0), num_candidates=4, **kwargs)
