"""`edlm train-denoiser`, `train-autoregressive`, `train-energy` and `train-drafts`: from flags to a model folder.

Flags may stand in a recipe (YAML).

A command that is repeated goes on from its newest complete checkpoint in `output_dir`, so that long runs can be made of
short ones (`time_limit_minutes`); one that says another thing about the run is refused there.
"""

from collections.abc import Callable
from functools import partial

import edlm_hf
from edlm_hf.commands.new_models import energy_to_train, new_drafter, new_model
from edlm_hf.commands.training_data import choose_tokenizer
from edlm_hf.commands.training_flags import DataArguments, DraftModelArguments, EnergyModelArguments, ModelArguments
from edlm_hf.commands.training_recipe import parse
from edlm_hf.commands.training_run import run
from edlm_hf.loading import load, load_causal, load_denoiser
from edlm_hf.modeling.vocabulary import fit_to_tokenizer
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.energy_arguments import EnergyArguments
from edlm_hf.training.trainer_autoregressive import AutoregressiveTrainer
from edlm_hf.training.trainer_denoiser import MaskedDiffusionArguments, MaskedDiffusionTrainer
from edlm_hf.training.trainer_drafts import DraftArguments, DraftTrainer
from edlm_hf.training.trainer_energy import EnergyTrainer


def train_denoiser(arguments: list[str]) -> dict:
    """Train a masked diffusion model; returns and prints what came out."""
    classes = (DataArguments, ModelArguments, MaskedDiffusionArguments)
    data, sizes, args = parse(train_denoiser, classes, arguments)
    if sizes.model and sizes.from_causal:
        raise ValueError("model and from_causal both say where the weights come from: give one of them.")
    tokenizer = choose_tokenizer(data, sizes.model or sizes.from_causal)

    if sizes.model:
        model = load_denoiser(sizes.model, tokenizer)
    elif sizes.from_causal:
        # The sizes are those of the AR baseline, which lacks what belongs to diffusion
        causal = load(edlm_hf.MDLMForCausalLM.from_pretrained, sizes.from_causal)
        names = ("cond_dim", "time_conditioning", "noise_schedule", "dropout")
        of_diffusion = {name: getattr(sizes, name) for name in names}
        model = edlm_hf.MDLMForMaskedLM.from_causal(causal, **of_diffusion)
    else:
        model = new_model(sizes, data, tokenizer)

    # Ids that the tokenizer does not have are never drawn, and get no probability
    fit_to_tokenizer(model, tokenizer)
    return run(MaskedDiffusionTrainer, model, (data, sizes, args), tokenizer)


def train_autoregressive(arguments: list[str]) -> dict:
    """Train the autoregressive baseline, the same transformer made causal; returns and prints what came out."""
    classes = (DataArguments, ModelArguments, EDLMTrainingArguments)
    data, sizes, args = parse(train_autoregressive, classes, arguments)
    tokenizer = choose_tokenizer(data, sizes.model)
    if sizes.model:
        model = load_causal(sizes.model)
    else:
        model = new_model(sizes, data, tokenizer, causal=True)
    return run(AutoregressiveTrainer, model, (data, sizes, args), tokenizer)


def train_energy(arguments: list[str]) -> dict:
    """Train the NCE energy of a denoiser; returns and prints what came out."""
    classes = (DataArguments, EnergyModelArguments, EnergyArguments)
    data, parts, args = parse(train_energy, classes, arguments)

    # The tokenizer and the blocks are those of the denoiser, whose negatives the energy tells from text
    model = energy_to_train(parts)
    tokenizer = choose_tokenizer(data, parts.model or parts.denoiser)
    fit_to_tokenizer(model, tokenizer)
    return run(EnergyTrainer, model, (data, parts, args), tokenizer)


def train_drafts(arguments: list[str]) -> dict:
    """Train the draft head of a denoiser, for speculative sampling; returns and prints what came out."""
    classes = (DataArguments, DraftModelArguments, DraftArguments)
    data, parts, args = parse(train_drafts, classes, arguments)

    # The denoiser is held as it is, and the head reads its hidden states
    target = None if parts.autoregressive is None else load_causal(parts.autoregressive)
    model = new_drafter(parts, target)
    tokenizer = choose_tokenizer(data, parts.denoiser)
    fit_to_tokenizer(model, tokenizer)
    trainer = partial(DraftTrainer, target=target)
    return run(trainer, model, (data, parts, args), tokenizer)


COMMANDS: dict[str, Callable[[list[str]], dict]] = {
    "train-denoiser": train_denoiser,
    "train-autoregressive": train_autoregressive,
    "train-energy": train_energy,
    "train-drafts": train_drafts,
}
