"""What the trainers of this package have in common: averaged weights, reproducible noise, evaluation row by row."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import load_fsdp_model, save_fsdp_model
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from transformers import EvalPrediction, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from edlm_hf.evaluation.estimate import ratio_estimate
from edlm_hf.hub import write_better_card
from edlm_hf.modeling.masked_diffusion import uniform
from edlm_hf.modeling.network_facts import num_ids
from edlm_hf.training.averaging import ExponentialMovingAverage
from edlm_hf.training.collators import DataCollatorForBlocks
from edlm_hf.training.optimizers import MuonAdamW

PRESENT_WEIGHTS = "present_weights.safetensors"
AVERAGE_OF_SHARDS = 1  # accelerate's index of a second sharded model; the present weights have index 0


@dataclass
class EDLMTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, where optimiser, schedule, precision, compilation and logging are set.

    Raises:
        ValueError: `muon` with FSDP.
    """

    ema_decay: float = field(
        default=0.9999,
        metadata={"help": "Decay of the average of the weights that is evaluated and saved; 0: no average."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, ...: eager is the fastest on some processors."}
    )
    muon: bool = field(
        default=False,
        metadata={"help": "Muon for the matrices of the blocks, AdamW for the rest, in place of `optim`."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.muon and self.fsdp:
            raise ValueError("Muon needs whole matrices, which FSDP splits over processes. Use DDP, or muon=False.")


class EDLMTrainer(Trainer):
    """`transformers.Trainer` on blocks of tokens.

    - An average of the weights (`ema_decay`) is what is evaluated and what every folder holds as its model: a
      `checkpoint-N` is loaded by `from_pretrained` like any other model. The weights that training goes on with are
      beside it.
    - All noise of a step is a function of the seed, the step and the place of a row in the global batch. However that
      is divided between processes and accumulation steps, and wherever the run was interrupted, it is the same.
    - Evaluation runs over all processes and reports every number with its standard error.

    Args:
        model: what is trained. args: `EDLMTrainingArguments`.
        data_collator: `DataCollatorForBlocks` of the model's configuration unless given.
        kwargs: of `transformers.Trainer`; `processing_class`, the tokenizer, is saved with the model.

    Raises:
        ValueError: arguments of another class.
    """

    arguments_class = EDLMTrainingArguments

    def __init__(self, model, args: EDLMTrainingArguments, data_collator=None, **kwargs):
        if not isinstance(args, self.arguments_class):
            raise ValueError(
                f"args is {type(args).__name__}, but {type(self).__name__} takes {self.arguments_class.__name__}, "
                "which has all of TrainingArguments."
            )
        self.average = ExponentialMovingAverage(args.ema_decay)
        if args.ema_decay:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), self.average]
        if args.attn_implementation:
            model.set_attn_implementation(args.attn_implementation)
        if args.muon:
            options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "eps": args.adam_epsilon}
            options["betas"] = (args.adam_beta1, args.adam_beta2)
            kwargs["optimizer_cls_and_kwargs"] = (lambda: MuonAdamW), options  # the Trainer's form for whole models
        collator = data_collator or DataCollatorForBlocks(model.config, num_ids(model))
        super().__init__(model, args, collator, compute_metrics=self.compute_row_metrics, **kwargs)
        self.eval_batches = 0

    # ------------------------------------------------------------------------------------------------------------ noise

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As usual; every batch learns where its rows stand in the global batch."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for i, batch in enumerate(batches):
            place = i * self.args.world_size + self.args.process_index
            batch["first_row"] = place * self.args.train_batch_size
        return batches, num_items

    @property
    def rows_per_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def noise(self, *shapes: tuple[int, ...], rows: slice) -> Iterator[torch.Tensor]:
        """Uniforms of the present step on the device: one for the step, then (rows, *shape) for every shape.

        Drawn for the whole global batch and cut: rows of all processes are taken to have one length (where they differ
        the noise is right in law, but not independent between processes).
        """
        seed = np.random.SeedSequence([self.args.seed, self.state.global_step]).generate_state(1, np.uint64)
        generator = torch.Generator(self.args.device).manual_seed(int(seed[0]))
        yield uniforms((), generator)
        for shape in shapes:
            yield uniforms((self.rows_per_step, *shape), generator)[rows]

    # ------------------------------------------------------------------------------------------------------- evaluation

    def evaluate_rows(self, inputs: dict, seed: int) -> dict[str, torch.Tensor]:
        """What one batch of evaluation measures: named sums (B,) per row.

        Args:
            inputs: a batch of the collator, on the device. seed: of its noise; another one for every batch.
        """
        raise NotImplementedError

    def summarise(self, rows: dict[str, torch.Tensor]) -> dict[str, float]:
        """Metrics from what `evaluate_rows` measured on all rows (N,), `loss` among them."""
        raise NotImplementedError

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs):
        """As usual; what is evaluated is so to the last row: `dataloader_drop_last` is for training alone."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args, **kwargs):
        """As usual, with the averaged weights."""
        self.eval_batches = 0
        with self.averaged_weights(), whole_weights(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """(None, measurements (B, names), B zeros): the Trainer gathers them over processes, without the doubles."""
        seed = self.args.seed + self.eval_batches * self.args.world_size + self.args.process_index
        self.eval_batches += 1
        with torch.no_grad():
            measured = self.evaluate_rows(self._prepare_inputs(inputs), seed)
        self.measured = tuple(measured)
        table = torch.stack([x.to(self.args.device, torch.float32) for x in measured.values()], dim=-1)
        return None, table, torch.zeros(len(table), device=table.device)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Metrics of the averaged weights on the evaluation data; see `summarise` of the trainer."""
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def compute_row_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        table = torch.from_numpy(np.asarray(prediction.predictions)).double()
        return self.summarise(dict(zip(self.measured, table.unbind(-1), strict=True)))

    def token_metrics(self, nats: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        """Nats per token, perplexity and bits per token (or character) with standard errors over texts, from (N,)."""
        loss = ratio_estimate(nats, tokens, "nats/token")
        bits = f"bits_per_{'character' if is_character_level(self.processing_class) else 'token'}"
        perplexity = math.exp(min(loss.value, 700.0))
        return {
            "loss": loss.value,
            "loss_standard_error": loss.standard_error,
            "perplexity": perplexity,
            "perplexity_standard_error": perplexity * loss.standard_error,
            bits: loss.value / math.log(2),
            f"{bits}_standard_error": loss.standard_error / math.log(2),
        }

    # ----------------------------------------------------------------------------------------------------- checkpoints

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights in place of the present ones, for evaluating, saving or generating."""
        with self.average.applied(self.model):
            yield

    def save_model(self, output_dir=None, _internal_call=False):
        """The averaged weights, as `save_pretrained` writes them."""
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        """As usual; an adapter, which PEFT saves, has our card instead of a template that is still to be filled in."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_better_card(Path(output_dir or self.args.output_dir), config=self.model.config)

    def create_model_card(self, *args, **kwargs):
        """Nothing: `save_model` writes the card of the model (`edlm_hf.modeling.card_edlm`), which a push keeps."""

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average.shadow is None:
            return
        if self.is_fsdp_enabled:  # the Trainer saves the present weights in its own format
            with self.averaged_weights():
                plugin = self.accelerator.state.fsdp_plugin
                save_fsdp_model(plugin, self.accelerator, self.model, output_dir, AVERAGE_OF_SHARDS)
        elif self.args.should_save:
            save_file(self.present_weights(), Path(output_dir, PRESENT_WEIGHTS))

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # then the main process writes what makes the checkpoint complete

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled and any(folder.glob(f"{FSDP_MODEL_NAME}_{AVERAGE_OF_SHARDS}*")):
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, model or self.model, folder, AVERAGE_OF_SHARDS)
            self.average.restart(self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (folder / PRESENT_WEIGHTS).exists():
            self.average.restart(self.model)
            stored = load_file(folder / PRESENT_WEIGHTS)
            with torch.no_grad():
                for name, weight in self.present_weights().items():
                    weight.copy_(stored[name])

    def restore(self, checkpoint: str | Path) -> None:
        """Weights (of the best checkpoint if so asked), their average and the state, without training on."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def _load_best_model(self):
        super()._load_best_model()
        self.average.restart(self.model)

    def present_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}


def uniforms(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniforms on [0, 1) on the generator's device; float64, or float32 where the device has no other (MPS)."""
    draws = uniform(shape, generator.device, generator)
    return draws.to(generator.device, torch.float32) if generator.device.type == "mps" else draws


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Parameters that FSDP has split over processes are whole: parts of the model can be called by themselves."""
    split = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in split:
        module.set_reshard_after_forward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in split:
            module.set_reshard_after_forward(True)
            module.reshard()


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest `checkpoint-N` that was written to its end; an interrupted one is passed over."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = [folder for folder in folders if folder.name.rpartition("-")[2].isdigit()]
    for folder in sorted(numbered, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())  # written last
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def is_character_level(tokenizer) -> bool:
    """Whether every token of a tokenizer, special ones aside, is a single character."""
    if tokenizer is None:
        return False
    return all(len(token) == 1 for token in set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


__all__ = ["EDLMTrainer", "EDLMTrainingArguments", "last_complete_checkpoint"]
