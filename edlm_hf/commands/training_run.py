"""A run of a training command: train, evaluate, save, and print what came out."""

import contextlib
import shlex
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from edlm_hf.cards import CardFacts
from edlm_hf.commands.run_recipe import RECIPE, check_same_run, description_of_rows, recipe_of
from edlm_hf.commands.training_data import load_sets
from edlm_hf.commands.training_flags import DataArguments
from edlm_hf.commands.training_report import training_report
from edlm_hf.errors import writing
from edlm_hf.files import to_json, write_atomically
from edlm_hf.hidden_secrets import hide_in_command
from edlm_hf.markdown import code_span
from edlm_hf.terminal import tell, write
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.folder_lock import FolderLock
from edlm_hf.training.memory import peak_memory, sizes_in_bytes
from edlm_hf.training.trainer_autoregressive import AutoregressiveTrainer
from edlm_hf.training.trainer_base import EDLMTrainer
from edlm_hf.training.whole_checkpoints import last_complete_checkpoint, named_checkpoint


def run(trainer_class: type[EDLMTrainer], model: PreTrainedModel, parsed: tuple, tokenizer) -> dict:
    """Train, evaluate and save; in the main process print what came out."""
    data, _, args = parsed
    lock = FolderLock(args.output_dir) if args.process_index == 0 else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr):  # the log of transformers; stdout is for the result
        with writing(args.output_dir, "What was saved before is whole: make room, and repeat the command."), lock:
            result = train(trainer_class, model, parsed, tokenizer)
    if args.process_index == 0:
        is_causal = trainer_class is AutoregressiveTrainer
        write(to_json(result) if data.json else training_report(result, data, is_causal))
        if not result["finished"]:
            tell("Stopped at the time limit: repeat the command to go on.")
    return result


def train(trainer_class: type[EDLMTrainer], model: PreTrainedModel, parsed: tuple, tokenizer) -> dict:
    """Train from the last complete checkpoint on, then evaluate and save.

    Returns:
        What the run came to, as it is printed. Without measurements where a time limit ended it.
    """
    data, _, args = parsed

    # 1. Where the run goes on, and its rows. One process writes, the others read what it wrote
    recipe = recipe_of(parsed)
    checkpoint = starting_point(args, recipe)
    with args.main_process_first(desc="making blocks"):
        training, blocks = load_sets(data, tokenizer)
    recipe["training_rows"] = description_of_rows(training)
    if checkpoint is not None:
        check_same_run(str(Path(checkpoint).parent), recipe)
    if args.process_index == 0:
        write_recipe(args.output_dir, recipe, is_new=checkpoint is None)

    limit = TimeLimit(data.time_limit_minutes)
    trainer = trainer_class(
        model,
        args,
        processing_class=tokenizer,
        callbacks=[limit],
        train_dataset=training,
        eval_dataset=blocks,
    )
    trainer.has_folder = True

    # 2. A run that had ended is only measured again
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    if is_finished(checkpoint, args) and not trainer.is_fsdp_enabled:
        trainer.restore(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == 0:
        raise ValueError(
            f"Not one step was trained: {data.dataset} does not fill a batch of {recipe['rows_per_step']} rows of "
            f"{data.length} tokens. Give more text, or a smaller per_device_train_batch_size."
        )

    result = {"class": type(model).__name__, "output_dir": args.output_dir} | sizes_in_bytes(model)
    result |= {
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "finished": not limit.reached,
        "training_seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory(),
    }
    if limit.reached:
        return result

    # 3. Saved before anything else can fail. It is pushed with its card, once
    trainer.save_model(_internal_call=True)
    trainer.save_state()

    # 4. Measured, and saved with a card that says what was measured
    measured = trainer.evaluate()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.card_facts = facts_of_run(data, measured, num_texts=len(blocks))
    trainer.save_model()
    trainer.save_state()
    return result | measured


def starting_point(args: EDLMTrainingArguments, recipe: dict) -> str | None:
    """The checkpoint from which a run goes on, None for a new one.

    Raises:
        ValueError: the folder holds another run.
    """
    where = (args.output_dir, bool(args.ema_decay))
    with args.main_process_first(desc="looking for checkpoints"):
        checkpoint = named_checkpoint(args.resume_from_checkpoint, *where)
        checkpoint = checkpoint or last_complete_checkpoint(*where, set_aside=args.process_index == 0)

    if checkpoint is not None:
        check_same_run(str(Path(checkpoint).parent), recipe)
    return checkpoint


def write_recipe(folder: str, recipe: dict, is_new: bool) -> None:
    """Write what makes a run the same into its folder, unless it goes on and has it there."""
    file = Path(folder, RECIPE)
    if is_new or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(recipe, indent=2).encode())


def facts_of_run(data: DataArguments, measured: dict[str, float], num_texts: int) -> CardFacts:
    """What the card of a model says of its training.

    Args:
        data: options of the data.
        measured: what `Trainer.evaluate` returned. Figures with a standard error enter the card.
        num_texts: rows that were measured.
    """
    results = {}
    for name, value in measured.items():
        error = measured.get(f"{name}_standard_error")
        if error is not None:
            results[name.removeprefix("eval_")] = (value, error)

    alphabet = ", reduced to the alphabet of text8" if data.normalize_text8 else ""
    texts = f"{num_texts} blocks of {data.length} tokens of {code_span(data.eval_dataset or data.dataset)}"
    return CardFacts(
        data=code_span(data.dataset) + alphabet,
        command=shlex.join(["edlm", *hide_in_command(sys.argv[1:])]),
        results=results,
        measured=f"On {texts}, ± the standard error over texts.",
    )


def is_finished(checkpoint: str | None, args: EDLMTrainingArguments) -> bool:
    """Whether a checkpoint is the last one of its run."""
    if checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    if args.max_steps > 0:
        return state.global_step >= args.max_steps
    return (state.epoch or 0) >= args.num_train_epochs


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
