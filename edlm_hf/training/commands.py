"""`edlm train-denoiser`, `train-autoregressive`, `train-energy` and `train-drafts`: from flags to a model folder.

Flags may stand in a recipe (YAML).

A command that is repeated goes on from its newest complete checkpoint in `output_dir`, so that long runs can be made of
short ones (`time_limit_minutes`); one that says another thing about the run is refused there.
"""

import argparse
import contextlib
import copy
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

import edlm_hf
from edlm_hf.cards import CardFacts
from edlm_hf.data import PROTOCOLS, load_corpus, to_blocks
from edlm_hf.data.corpus import has_splits
from edlm_hf.errors import writing
from edlm_hf.files import fault_of, read_options, to_json, write_atomically
from edlm_hf.hidden_secrets import hide_in_command, hide_in_values, hide_secrets, hide_shapes, is_secret_name
from edlm_hf.loading import load, load_causal, load_config, load_denoiser, load_tokenizer
from edlm_hf.markdown import code_span
from edlm_hf.modeling.network_facts import longest_text, num_ids
from edlm_hf.modeling.vocabulary import absent_ids, fit_to_tokenizer
from edlm_hf.terminal import tell, visible, write
from edlm_hf.tokenization import add_mask_token, normalize_text8, text8_tokenizer, vocabulary_rows
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.energy_arguments import EnergyArguments
from edlm_hf.training.folder_lock import FolderLock
from edlm_hf.training.trainer_autoregressive import AutoregressiveTrainer
from edlm_hf.training.trainer_base import EDLMTrainer
from edlm_hf.training.trainer_denoiser import MaskedDiffusionArguments, MaskedDiffusionTrainer
from edlm_hf.training.trainer_drafts import DraftArguments, DraftTrainer
from edlm_hf.training.trainer_energy import EnergyTrainer
from edlm_hf.training.whole_checkpoints import last_complete_checkpoint, named_checkpoint

RECIPE = "recipe.json"  # beside the checkpoints of a run: what it is
# Of the training arguments, what makes a run another one; where and how often something is written does not
SHAPING = ("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "seed")
READING = ("json", "time_limit_minutes", "eval_dataset", "eval_split", "eval_blocks", "attn_implementation")
READING += ("eval_noise_samples", "eval_num_candidates", "eval_denoising_steps")


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "A protocol (text8, openwebtext, ...), a dataset of the Hub, or files."})
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Unless given, `dataset` itself; of files the last twentieth, which is then not trained on."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on: validation unless given, test if there is none."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column with the text, where it is not obvious."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "text8 (27 characters), or a tokenizer of the Hub. Unless given, that of the model that training "
            "starts from, or text8."
        },
    )
    normalize_text8: bool = field(default=False, metadata={"help": "Reduce the text to the alphabet of text8."})
    length: int | None = field(
        default=None, metadata={"help": "Tokens per block; unless given, the protocol's, or the longest of the model."}
    )
    style: str | None = field(
        default=None, metadata={"help": "wrap (start and end of text) or crop; the protocol's unless given."}
    )
    start_token: bool = field(
        default=False, metadata={"help": "Begin cropped blocks with a start token, as a model that has one needs it."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the training data while it is used."})
    eval_blocks: int | None = field(default=None, metadata={"help": "Evaluate on the first blocks only."})
    time_limit_minutes: float | None = field(
        default=None, metadata={"help": "Save and stop after so long; the same command goes on from there."}
    )
    json: bool = field(default=False, metadata={"help": "Print the result as JSON."})

    def __post_init__(self):
        for name in ("length", "eval_blocks"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least 1.")


@dataclass
class ModelArguments:
    model: str | None = field(default=None, metadata={"help": "Start from this model, not from random weights."})
    from_causal: str | None = field(
        default=None,
        metadata={"help": "Start the denoiser from the weights of this autoregressive baseline, whose sizes it takes."},
    )
    hidden_dim: int = field(default=768, metadata={"help": "Width."})
    cond_dim: int = field(default=128, metadata={"help": "Width of the conditioning (denoiser only)."})
    n_blocks: int = field(default=12, metadata={"help": "Transformer blocks."})
    n_heads: int = field(default=12, metadata={"help": "Attention heads."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the residual branches."})
    time_conditioning: bool = field(default=False, metadata={"help": "Show the noise level to the denoiser."})
    noise_schedule: str = field(default="loglinear", metadata={"help": "Noise schedule of the denoiser."})


@dataclass
class EnergyModelArguments:
    denoiser: str | None = field(
        default=None,
        metadata={"help": "The trained denoiser that gets a new energy, a folder or a repository of the Hub."},
    )
    model: str | None = field(
        default=None, metadata={"help": "Instead of a denoiser: go on with the energy of this model, held as it is."}
    )
    energy: str = field(
        default="full",
        metadata={
            "help": "full: a copy of the denoiser. lora: the denoiser's own weights with low-rank updates. head: a "
            "small head on the denoiser's hidden states.",
            "choices": ["full", "lora", "head"],
        },
    )
    adapter_rank: int = field(default=16, metadata={"help": "Rank of the updates (lora)."})
    energy_blocks: int | None = field(default=None, metadata={"help": "Only the first blocks of the copy (full)."})
    energy_scope: str | None = field(
        default=None,
        metadata={
            "help": "What the energy weighs; unless given, what that of the model does, or sequence.",
            "choices": ["sequence", "revealed"],
        },
    )


@dataclass
class DraftModelArguments:
    denoiser: str | None = field(
        default=None,
        metadata={
            "help": "The trained denoiser that gets a new draft head, a folder or a repository of the Hub; of a "
            "composite its denoiser. It is saved with the head."
        },
    )
    draft_rank: int = field(default=64, metadata={"help": "Rank of the head."})


# ------------------------------------------------------------------------------------------------------------- commands


def train_denoiser(arguments: list[str]) -> dict:
    """Train a masked diffusion model; returns and prints what came out."""
    data, sizes, args = parse("train-denoiser", (DataArguments, ModelArguments, MaskedDiffusionArguments), arguments)
    if sizes.model and sizes.from_causal:
        raise ValueError("model and from_causal both say where the weights come from: give one of them.")
    tokenizer = choose_tokenizer(data, sizes.model or sizes.from_causal)
    if sizes.model:
        model = load_denoiser(sizes.model, tokenizer)
    elif sizes.from_causal:
        causal = load(edlm_hf.MDLMForCausalLM.from_pretrained, sizes.from_causal)
        names = "cond_dim", "time_conditioning", "noise_schedule", "dropout"
        model = edlm_hf.MDLMForMaskedLM.from_causal(causal, **{name: getattr(sizes, name) for name in names})
    else:
        model = new_model(sizes, data, tokenizer)
    fit_to_tokenizer(model, tokenizer)
    return run(MaskedDiffusionTrainer, model, (data, sizes, args), tokenizer)


def train_autoregressive(arguments: list[str]) -> dict:
    """Train the autoregressive baseline, the same transformer made causal; returns and prints what came out."""
    classes = (DataArguments, ModelArguments, EDLMTrainingArguments)
    data, sizes, args = parse("train-autoregressive", classes, arguments)
    tokenizer = choose_tokenizer(data, sizes.model)
    if sizes.model:
        model = load_causal(sizes.model)
    else:
        model = new_model(sizes, data, tokenizer, causal=True)
    return run(AutoregressiveTrainer, model, (data, sizes, args), tokenizer)


def train_energy(arguments: list[str]) -> dict:
    """Train the NCE energy of a denoiser; returns and prints what came out."""
    data, parts, args = parse("train-energy", (DataArguments, EnergyModelArguments, EnergyArguments), arguments)
    model = new_energy(parts)
    tokenizer = choose_tokenizer(data, parts.model or parts.denoiser)
    fit_to_tokenizer(model, tokenizer)
    return run(EnergyTrainer, model, (data, parts, args), tokenizer)


def train_drafts(arguments: list[str]) -> dict:
    """Train the draft head of a denoiser, for speculative sampling; returns and prints what came out."""
    data, parts, args = parse("train-drafts", (DataArguments, DraftModelArguments, DraftArguments), arguments)
    model = new_drafter(parts)
    tokenizer = choose_tokenizer(data, parts.denoiser)
    fit_to_tokenizer(model, tokenizer)
    return run(DraftTrainer, model, (data, parts, args), tokenizer)


COMMANDS: dict[str, Callable[[list[str]], dict]] = {
    "train-denoiser": train_denoiser,
    "train-autoregressive": train_autoregressive,
    "train-energy": train_energy,
    "train-drafts": train_drafts,
}


class Flags(HfArgumentParser):
    """The flags of a command. Neither its help, which shows the recipe, nor its errors show a secret."""

    secrets: tuple[str, ...] = ()  # of the recipe

    def format_help(self) -> str:
        return visible(hide_shapes(super().format_help()))

    def error(self, message: str):
        super().error(visible(hide_secrets(message, self.secrets)))


def parse(command: str, classes: tuple[type, ...], arguments: list[str]) -> tuple:
    """Dataclasses from flags; a first argument that is no flag is a YAML file with the defaults.

    The last one are the training arguments, whose seed is set: new weights are those of the seed. What is no flag of
    the command, in the file or behind it, or has a value of another type, ends the program with exit code 2.
    """
    parser = Flags(
        classes,
        prog=f"edlm {command}",
        usage=f"edlm {command} [RECIPE.yaml] [--FLAG VALUE ...]",
        description=COMMANDS[command].__doc__.partition(";")[0] + ". Flags override the recipe.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = {action.dest: action for action in parser._actions}
    known["output_dir"].required = True  # two runs must not meet in a folder that nobody named
    if arguments and not arguments[0].startswith("-"):
        try:
            recipe = read_options(arguments[0])
        except ValueError as error:
            parser.error(str(error))
        if unknown := set(recipe) - set(known):
            parser.error(f"{arguments[0]} sets {', '.join(sorted(unknown))}, which edlm {command} does not have.")
        for name in recipe:
            known[name].required = False
        # Secrets become flags: the help would show them as defaults
        secret = {name: str(x) for name, x in recipe.items() if is_secret_name(name) and x is not None}
        others = {name: x for name, x in recipe.items() if name not in secret}
        parser.secrets = tuple(secret.values())
        # argparse converts and checks defaults that are text
        parser.set_defaults(**{name: str(x) if isinstance(x, (int, float)) else x for name, x in others.items()})
        arguments = [*(f"--{name}={value}" for name, value in secret.items()), *arguments[1:]]
    *parsed, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"there is no {' '.join(unknown)}; --help lists the flags.")
    # From here on nothing that writes down how it was called, such as a card or a logger, sees a secret
    known = [x for name, x in vars(parsed[-1]).items() if is_secret_name(name) and isinstance(x, str)]
    sys.argv[1:] = hide_in_command(sys.argv[1:], known)
    set_seed(parsed[-1].seed)
    return tuple(parsed)


# --------------------------------------------------------------------------------------------------- parts of a command


def choose_tokenizer(data: DataArguments, start: str | None):
    """The tokenizer; `data` gets what was not said of blocks, where needed from `start`, the model to start from."""
    protocol = PROTOCOLS.get(data.dataset)
    config = load_config(start) if start else None
    longest = longest_text(config)
    data.length = data.length or (protocol.length if protocol else longest or 1024)
    data.style = data.style or (protocol.style if protocol else "wrap")
    data.start_token |= data.style == "crop" and getattr(config, "bos_token_id", None) is not None
    data.tokenizer = data.tokenizer or start or "text8"
    if data.tokenizer == "text8":
        return text8_tokenizer(data.length, start_token=data.start_token)
    return add_mask_token(load_tokenizer(data.tokenizer))


def load_blocks(data: DataArguments, tokenizer, training: bool):
    name = data.dataset if training else data.eval_dataset or data.dataset
    protocol = PROTOCOLS.get(name)
    held_out = protocol.evaluation if protocol and "validation" not in protocol.splits else "validation"
    split = data.train_split if training else data.eval_split or held_out
    normalize = normalize_text8 if data.normalize_text8 else None
    streaming = data.streaming and training
    corpus = load_corpus(name, split, streaming=streaming, text_column=data.text_column, normalize=normalize)
    start_token = data.start_token and data.style == "crop"
    blocks = to_blocks(corpus, tokenizer, data.length, style=data.style, start_token=start_token)
    return blocks if streaming else blocks.with_format("numpy")


def new_model(sizes: ModelArguments, data: DataArguments, tokenizer, causal: bool = False) -> PreTrainedModel:
    """Random weights. The start token of cropped blocks is context; wrapped blocks are modelled whole, as published."""
    chosen = {name: value for name, value in vars(sizes).items() if name not in ("model", "from_causal")}
    if causal:
        chosen = {name: chosen[name] for name in ("hidden_dim", "n_blocks", "n_heads", "dropout")} | {"causal": True}
    if data.style == "crop" and data.start_token:
        chosen |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rows = vocabulary_rows(tokenizer)
    config = edlm_hf.MDLMConfig(
        vocab_size=rows,
        mask_token_id=tokenizer.mask_token_id,
        absent_token_ids=absent_ids(tokenizer, rows),
        model_length=data.length,
        **chosen,
    )
    return edlm_hf.MDLMForCausalLM(config) if causal else edlm_hf.MDLMForMaskedLM(config)


def load_sets(data: DataArguments, tokenizer) -> tuple:
    """Blocks to train and to evaluate on."""
    training = load_blocks(data, tokenizer, training=True)
    if data.eval_dataset is not None or has_splits(data.dataset):
        blocks = load_blocks(data, tokenizer, training=False)
    elif data.streaming or len(training) < 2:
        raise ValueError(f"{data.dataset} has nothing to evaluate on: give --eval_dataset.")
    else:
        last = len(training) - max(1, len(training) // 20)
        training, blocks = training.select(range(last)), training.select(range(last, len(training)))
    return training, blocks.select(range(min(data.eval_blocks or len(blocks), len(blocks))))


def new_energy(parts: EnergyModelArguments) -> edlm_hf.EDLMForMaskedDiffusion:
    """The frozen denoiser with a new energy, held in one of three ways.

    Raises:
        ValueError: more `energy_blocks` than the denoiser has, or where nothing is copied; both a denoiser and a model
            to go on with, or neither.
    """
    if (parts.denoiser is None) == (parts.model is None):
        raise ValueError("Give either denoiser, which gets a new energy, or model, whose energy is trained further.")
    scope = {} if parts.energy_scope is None else {"energy_scope": parts.energy_scope}
    if parts.model is not None:
        return load(AutoModelForMaskedLM.from_pretrained, parts.model, **scope)
    denoiser = load_denoiser(parts.denoiser)
    options = {"energy_type": "nce"} | scope
    if isinstance(denoiser, edlm_hf.EDLMForMaskedDiffusion):
        return energy_of_another_denoiser(denoiser, parts, options)
    if parts.energy != "full":
        rank = parts.adapter_rank if parts.energy == "lora" else 0
        options |= {"energy_weights": "shared", "energy_adapter_rank": rank}
    energy = None
    if parts.energy_blocks is not None:
        if parts.energy != "full" or not 1 <= parts.energy_blocks <= denoiser.config.n_blocks:
            raise ValueError(
                f"energy_blocks is {parts.energy_blocks} with energy={parts.energy!r}: it goes with 'full', from 1 to "
                f"the denoiser's {denoiser.config.n_blocks}."
            )
        first = copy.deepcopy(denoiser)
        first.config.n_blocks = parts.energy_blocks
        first.backbone.blocks = first.backbone.blocks[: parts.energy_blocks]
        energy = edlm_hf.EDLMEnergyModel.from_denoiser(first)
    return edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy, **options)


def energy_of_another_denoiser(
    whole: edlm_hf.EDLMForMaskedDiffusion, parts: EnergyModelArguments, options: dict
) -> edlm_hf.EDLMForMaskedDiffusion:
    """A denoiser that is not an MDLM (`whole` holds it) with a new energy network of its sizes and random weights."""
    if parts.energy != "full":
        raise ValueError(
            f"energy is {parts.energy!r} with a {type(whole.denoiser).__name__}, but only an MDLM can share its "
            "weights with the energy. Give energy='full': a network of the same sizes, with weights of its own."
        )
    config = whole.config
    of_energy = edlm_hf.MDLMConfig(
        vocab_size=num_ids(whole.denoiser),
        mask_token_id=config.mask_token_id,
        hidden_dim=config.hidden_size,
        n_blocks=parts.energy_blocks or config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        model_length=longest_text(whole.denoiser) or 1024,
        noise_schedule=config.noise_schedule,
        noise_schedule_params=config.noise_schedule_params,
    )
    energy = edlm_hf.EDLMEnergyModel(of_energy).to(whole.dtype)
    options |= {"mask_token_id": config.mask_token_id, "logits_shift": config.logits_shift}
    model = edlm_hf.EDLMForMaskedDiffusion.from_components(whole.denoiser, energy, **options)
    model.config.noise_schedule = config.noise_schedule
    model.config.noise_schedule_params = config.noise_schedule_params
    return model


def new_drafter(parts: DraftModelArguments) -> edlm_hf.MDLMForMaskedLM:
    """The denoiser with a new draft head.

    Raises:
        ValueError: no denoiser is given, it is not an MDLM, or the rank is not positive.
    """
    if parts.denoiser is None:
        raise ValueError("Give denoiser, the trained denoiser that gets a draft head.")
    denoiser = load_denoiser(parts.denoiser)
    if not isinstance(denoiser, edlm_hf.MDLMForMaskedLM):
        raise ValueError(f"{parts.denoiser} is not an MDLM denoiser, and only an MDLM can have a draft head.")
    denoiser.add_draft_head(parts.draft_rank)
    return denoiser


def recipe_of(parsed: tuple) -> dict:
    """The arguments of a command that make a run what it is; the rows of a step are those of all devices."""
    *parts, args = parsed
    ours = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    found = {name: value for part in parts for name, value in vars(part).items()}
    found |= {name: getattr(args, name) for name in (*SHAPING, *sorted(ours))}
    data = parts[0]
    found["held_out"] = data.eval_dataset is None and not has_splits(data.dataset)  # then less is trained on
    found["rows_per_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    chosen = {name: value for name, value in found.items() if name not in READING}
    return json.loads(to_json(hide_in_values(chosen)))


def check_same_run(folder: str, recipe: dict) -> None:
    """Raise ValueError if a folder holds the checkpoints of another run."""
    path = Path(folder, RECIPE)
    if not path.exists():
        if recipe["held_out"]:
            raise ValueError(f"{folder} does not say what its run was trained on: give --eval_dataset.")
        return
    if fault := fault_of(path):
        raise ValueError(f"{path} {fault}. It says what the run is: put it back, or delete it if you know the run.")
    stored = json.loads(path.read_text())
    if other := [name for name in recipe if name in stored and stored[name] != recipe[name]]:
        told = "; ".join(f"{name} is {recipe[name]!r}, there {stored[name]!r}" for name in other)
        raise ValueError(
            f"{folder} holds the checkpoints of another run: {told}. Go on with the values of that run, or give "
            "another output_dir."
        )


def is_finished(checkpoint: str | None, args) -> bool:
    if checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    if args.max_steps > 0:
        return state.global_step >= args.max_steps
    return (state.epoch or 0) >= args.num_train_epochs


def run(trainer_class: type[EDLMTrainer], model: PreTrainedModel, parsed: tuple, tokenizer) -> dict:
    """Train, evaluate and save; in the main process print what came out."""
    data, _, args = parsed
    lock = FolderLock(args.output_dir) if args.process_index == 0 else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr):  # the log of transformers; stdout is for the result
        with writing(args.output_dir, "What was saved before is whole: make room, and repeat the command."), lock:
            result = train(trainer_class, model, parsed, tokenizer)
    if args.process_index == 0:
        write(to_json(result) if data.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
        if not result["finished"]:
            tell("Stopped at the time limit: repeat the command to go on.")
    return result


def train(trainer_class: type[EDLMTrainer], model: PreTrainedModel, parsed: tuple, tokenizer) -> dict:
    data, _, args = parsed
    recipe, where = recipe_of(parsed), (args.output_dir, bool(args.ema_decay))
    with args.main_process_first(desc="looking for checkpoints"):
        checkpoint = named_checkpoint(args.resume_from_checkpoint, *where)
        checkpoint = checkpoint or last_complete_checkpoint(*where, set_aside=args.process_index == 0)
    if checkpoint is not None:
        check_same_run(str(Path(checkpoint).parent), recipe)
    with args.main_process_first(desc="making blocks"):
        training, blocks = load_sets(data, tokenizer)
    if args.process_index == 0 and (checkpoint is None or not Path(args.output_dir, RECIPE).exists()):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(args.output_dir, RECIPE), to_json(recipe, indent=2).encode())
    limit = TimeLimit(data.time_limit_minutes)
    sets = {"train_dataset": training, "eval_dataset": blocks}
    trainer = trainer_class(model, args, processing_class=tokenizer, callbacks=[limit], **sets)
    trainer.has_folder = True
    result = {"class": type(model).__name__, "output_dir": args.output_dir} | sizes_in_bytes(model)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    if is_finished(checkpoint, args) and not trainer.is_fsdp_enabled:
        trainer.restore(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    result |= {"steps": trainer.state.global_step, "max_steps": trainer.state.max_steps, "finished": not limit.reached}
    result |= {"training_seconds": round(time.monotonic() - started, 1), "peak_memory_bytes": peak_memory()}
    if not limit.reached:
        measured = trainer.evaluate()
        result |= measured
        texts = f"{len(blocks)} blocks of {data.length} tokens of {code_span(data.eval_dataset or data.dataset)}"
        model.card_facts = CardFacts(
            data=code_span(data.dataset) + (", reduced to the alphabet of text8" if data.normalize_text8 else ""),
            command=shlex.join(["edlm", *hide_in_command(sys.argv[1:])]),
            results={
                name.removeprefix("eval_"): (value, measured[f"{name}_standard_error"])
                for name, value in measured.items()
                if f"{name}_standard_error" in measured
            },
            measured=f"On {texts}, ± the standard error over texts.",
        )
        trainer.save_model()
        trainer.save_state()
    return result


class TimeLimit(TrainerCallback):
    """Save and stop when the time is up, in all processes at the same step."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.reached = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.end is None or state.global_step >= state.max_steps:
            return
        late = torch.tensor(float(time.monotonic() > self.end), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(late, torch.distributed.ReduceOp.MAX)
        if late:
            self.reached = control.should_save = control.should_training_stop = True


def sizes_in_bytes(model: PreTrainedModel) -> dict[str, int | float]:
    """Bytes of parameters and buffers: of all, and of a composite's denoiser, energy head and the rest beside them.

    `energy_overhead` is what all but the head takes, as a multiple of the denoiser: 2 for a copy, at most 1.1 for a
    shared energy.
    """

    def size(module):
        return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))

    sizes = {"parameters": model.num_parameters(), "bytes": size(model)}
    energy = getattr(model, "energy_model", None)
    if energy is None:
        return sizes
    own_layers = energy.vocab_proj, energy.output_layer.linear, energy.energy_head
    head, denoiser = sum(map(size, own_layers)), size(model.denoiser)
    overhead = (sizes["bytes"] - head) / denoiser
    return sizes | {"denoiser_bytes": denoiser, "head_bytes": head, "energy_overhead": round(overhead, 4)}


def peak_memory() -> int:
    """Most memory of the accelerator so far, or of the process where there is none, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
