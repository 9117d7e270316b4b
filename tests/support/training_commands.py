"""The commands that train: the function of each and the classes of its options."""

from edlm_hf.commands import train
from edlm_hf.commands.training_flags import (
    DataArguments,
    DraftModelArguments,
    EnergyModelArguments,
    ModelArguments,
)
from edlm_hf.training import (
    DraftArguments,
    EDLMTrainingArguments,
    EnergyArguments,
    MaskedDiffusionArguments,
)

CLASSES = {
    "denoiser": (train.train_denoiser, (DataArguments, ModelArguments, MaskedDiffusionArguments)),
    "autoregressive": (train.train_autoregressive, (DataArguments, ModelArguments, EDLMTrainingArguments)),
    "energy": (train.train_energy, (DataArguments, EnergyModelArguments, EnergyArguments)),
    "drafts": (train.train_drafts, (DataArguments, DraftModelArguments, DraftArguments)),
}
