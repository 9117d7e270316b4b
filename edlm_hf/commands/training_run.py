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
from edlm_hf.commands.run_recipe import RECIPE, check_same_run, recipe_of
from edlm_hf.commands.training_data import load_sets
from edlm_hf.commands.training_report import training_report
from edlm_hf.errors import writing
from edlm_hf.files import to_json, write_atomically
from edlm_hf.hidden_secrets import hide_in_command
from edlm_hf.markdown import code_span
from edlm_hf.terminal import tell, write
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
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.card_facts = CardFacts(
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


def is_finished(checkpoint: str | None, args) -> bool:
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
