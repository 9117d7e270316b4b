"""Small training runs: their arguments, their data, and what they leave behind."""

import math

import datasets
import numpy as np
import pytest
import torch
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from torch import nn

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.training import (
    AutoregressiveTrainer,
    DraftArguments,
    DraftTrainer,
    EDLMTrainingArguments,
    EnergyArguments,
    EnergyTrainer,
    MaskedDiffusionArguments,
    MaskedDiffusionTrainer,
)

KINDS = ["denoiser", "autoregressive", "energy"]
KIND = pytest.mark.parametrize("kind", KINDS)
KIND_OR_DRAFTS = pytest.mark.parametrize("kind", [*KINDS, "drafts"])


def arguments(folder, cls=EDLMTrainingArguments, **changes) -> EDLMTrainingArguments:
    """Ten steps of eight rows on the CPU, no files."""
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    size = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 10,
        "learning_rate": 1e-3,
    }
    return cls(str(folder), **(quiet | size | changes))


def blocks(ids) -> datasets.Dataset:
    """Rows `input_ids` of an array (n, L)."""
    return datasets.Dataset.from_dict({"input_ids": np.asarray(ids, np.uint8)}).with_format("numpy")


def random_blocks(rows: int, length: int = 12, vocabulary: int = 12, seed: int = 0) -> datasets.Dataset:
    return blocks(np.random.default_rng(seed).integers(0, vocabulary, (rows, length)))


def logged(trainer, name: str = "loss") -> list[float]:
    """The logged values of a run, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def mean_and_error(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def denoiser_trainer(folder, model=None, rows=None, eval_rows=None, callbacks=None, **changes):
    rows = random_blocks(32) if rows is None else rows
    model = model or tiny_denoiser()
    args = arguments(folder, MaskedDiffusionArguments, **changes)
    return MaskedDiffusionTrainer(
        model,
        args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        callbacks=callbacks,
    )


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def trainer_of(kind: str, folder, rows, eval_rows=None, model=None, given=None, **changes):
    """One of the trainers: denoiser, autoregressive, drafts, energy; `given`: more arguments of its own."""
    sets = {"train_dataset": rows, "eval_dataset": eval_rows} | (given or {})
    if kind == "denoiser":
        model = tiny_denoiser() if model is None else model
        return MaskedDiffusionTrainer(
            model,
            arguments(folder, MaskedDiffusionArguments, **changes),
            **sets,
        )

    if kind == "autoregressive":
        model = tiny_causal() if model is None else model
        return AutoregressiveTrainer(model, arguments(folder, **changes), **sets)

    if kind == "drafts":
        model = tiny_denoiser(draft_width=2) if model is None else model
        return DraftTrainer(model, arguments(folder, DraftArguments, **changes), **sets)

    if model is None:
        energy = randomised(EDLMEnergyModel(tiny_config()), seed=3)
        model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), energy, energy_type="nce")

    cheap = {"eval_max_denoising_steps": 4, "eval_num_candidates": 2, "num_negatives": 2}
    return EnergyTrainer(model, arguments(folder, EnergyArguments, **(cheap | changes)), **sets)


def rows_with_prompts(number: int = 16, prompt: int = 3, vocabulary: int = 12) -> datasets.Dataset:
    """Rows of 4 to 11 tokens whose first ones are context by their labels."""
    random = np.random.default_rng(0)
    texts = [random.integers(0, vocabulary, 4 + (5 * i) % 8).tolist() for i in range(number)]
    return datasets.Dataset.from_list(
        [{"input_ids": text, "labels": [-100] * prompt + text[prompt:]} for text in texts]
    )
