"""Tiny energies in the three ways that they get their weights, and their trainer."""

import pytest
import torch
from published import tiny_denoiser
from training import arguments, random_blocks

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.training import EnergyArguments, EnergyTrainer

WAYS = {
    "full": {},
    "lora": {"energy_weights": "shared", "energy_adapter_rank": 2},
    "head": {"energy_weights": "shared"},
}
WAY = pytest.mark.parametrize("way", WAYS)


def new_energy(way="full", seed=0, denoiser=None, **options) -> EDLMForMaskedDiffusion:
    torch.manual_seed(seed)
    denoiser = tiny_denoiser() if denoiser is None else denoiser
    return EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce", **WAYS[way], **options)


def energy_trainer(folder, model, rows=None, eval_rows=None, **changes) -> EnergyTrainer:
    args = arguments(folder, EnergyArguments, **changes)
    rows = random_blocks(32) if rows is None else rows
    return EnergyTrainer(model, args, train_dataset=rows, eval_dataset=eval_rows)
