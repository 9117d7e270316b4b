"""Training: the denoiser, the autoregressive baseline, the energies and draft heads."""

from edlm_hf.energy_adapters import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES, energy_lora, merge_lora
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.averaging import ExponentialMovingAverage
from edlm_hf.training.collators import DataCollatorForBlocks
from edlm_hf.training.energy_arguments import EnergyArguments
from edlm_hf.training.memory import sizes_in_bytes
from edlm_hf.training.trainer_autoregressive import AutoregressiveTrainer
from edlm_hf.training.trainer_base import EDLMTrainer
from edlm_hf.training.trainer_denoiser import MaskedDiffusionArguments, MaskedDiffusionTrainer
from edlm_hf.training.trainer_drafts import DraftArguments, DraftTrainer
from edlm_hf.training.trainer_energy import EnergyTrainer
from edlm_hf.training.whole_checkpoints import last_complete_checkpoint

__all__ = [
    "LORA_MODULES_TO_SAVE",
    "LORA_TARGET_MODULES",
    "AutoregressiveTrainer",
    "DataCollatorForBlocks",
    "DraftArguments",
    "DraftTrainer",
    "EDLMTrainer",
    "EDLMTrainingArguments",
    "EnergyArguments",
    "EnergyTrainer",
    "ExponentialMovingAverage",
    "MaskedDiffusionArguments",
    "MaskedDiffusionTrainer",
    "energy_lora",
    "last_complete_checkpoint",
    "merge_lora",
    "sizes_in_bytes",
]
