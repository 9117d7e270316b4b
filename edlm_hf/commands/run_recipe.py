"""What makes a run another one, in a file beside its checkpoints."""

import json
from dataclasses import fields
from pathlib import Path

import datasets
from transformers import TrainingArguments

from edlm_hf.benchmarks.parts import digest_of_rows
from edlm_hf.benchmarks.text_sets import TextSet
from edlm_hf.commands.training_data import has_held_out_rows
from edlm_hf.data.corpus import Corpus
from edlm_hf.files import fault_of, to_json
from edlm_hf.hidden_secrets import hide_in_values
from edlm_hf.old_names import OLD_NAMES

COMPARED_ROWS = 64  # of the training rows, to find out whether they are the same
RECIPE = "recipe.json"  # beside the checkpoints of a run: what it is
# Of the training arguments, what makes a run another one; where and how often something is written does not
SHAPING = ("learning_rate", "weight_decay", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed")
SHAPING += ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "data_seed")
SHAPING += ("neftune_noise_alpha", "train_sampling_strategy", "dataloader_drop_last")
READING = ("json", "time_limit_minutes", "eval_dataset", "eval_split", "eval_blocks", "attn_implementation")
READING += ("eval_num_samples", "eval_num_candidates", "eval_max_denoising_steps")


def recipe_of(parsed: tuple) -> dict:
    """The arguments of a command that make a run what it is; the rows of a step are those of all devices."""
    *parts, args = parsed
    data = parts[0]

    # 1. All flags of ours, and those of transformers that change what is learned
    of_transformers = {field.name for field in fields(TrainingArguments)}
    ours = {field.name for field in fields(args)} - of_transformers
    found = {}
    for part in parts:
        found.update(vars(part))
    for name in (*SHAPING, *sorted(ours)):
        found[name] = getattr(args, name)

    # 2. What follows from several flags. With a part held out less is trained on
    found["normalize_text8"] = bool(data.normalize_text8)
    found["held_out"] = not has_held_out_rows(data)
    found["rows_per_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    # 3. As it comes back from a file, so that both can be compared: tuples are lists there
    chosen = {name: value for name, value in found.items() if name not in READING}
    return json.loads(to_json(hide_in_values(chosen)))


def description_of_rows(rows: Corpus) -> str | None:
    """The number of rows, and a hash of some of them at even distances. None for a stream."""
    if not isinstance(rows, datasets.Dataset):
        return None

    # As lists of Python's own numbers, which are the same whatever reads the rows
    compared = TextSet("training", rows.with_format(None)).rows(COMPARED_ROWS)
    return f"{len(rows)} rows with hash {digest_of_rows(compared)[:12]}"


def check_same_run(folder: str, recipe: dict) -> None:
    """Raise ValueError if a folder holds the checkpoints of another run."""
    # 1. No file: nothing can be compared. What was held out must be known, or it would be trained on
    path = Path(folder, RECIPE)
    if not path.exists():
        if recipe["held_out"]:
            raise ValueError(f"{folder} does not say what its run was trained on: give --eval_dataset.")
        return

    # 2. A file that is not whole
    fault = fault_of(path)
    if fault:
        raise ValueError(f"{path} {fault}. It says what the run is: put it back, or delete it if you know the run.")

    # 3. Names that one of both does not have are of another version, and no difference
    stored = {OLD_NAMES.get(name, name): value for name, value in json.loads(path.read_text()).items()}
    other = [name for name in recipe if name in stored and stored[name] != recipe[name]]
    if other:
        told = "; ".join(f"{name} is {recipe[name]!r}, there {stored[name]!r}" for name in other)
        raise ValueError(
            f"{folder} holds the checkpoints of another run: {told}. Go on with the values of that run, or give "
            "another output_dir."
        )
