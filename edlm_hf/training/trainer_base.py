"""What the trainers of this package have in common: averaged weights, reproducible noise, evaluation row by row."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import load_fsdp_model, save_fsdp_model
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress, logging

from edlm_hf.evaluation.estimate import ratio_estimate
from edlm_hf.hidden_secrets import hide_in_values, is_secret_name
from edlm_hf.hub import write_better_card
from edlm_hf.modeling.network_facts import num_ids
from edlm_hf.pushing import push_folder
from edlm_hf.training.averaging import ExponentialMovingAverage
from edlm_hf.training.collators import ROW_COLUMNS, DataCollatorForBlocks
from edlm_hf.training.folder_lock import FolderLock
from edlm_hf.training.optimizers import MuonAdamW
from edlm_hf.training.pushing import push_checkpoint, push_in_background
from edlm_hf.training.refused_options import check_arguments, check_fields
from edlm_hf.training.row_noise import row_uniforms
from edlm_hf.training.whole_checkpoints import (
    MANIFEST,
    PRESENT_WEIGHTS,
    fault_of_checkpoint,
    named_checkpoint,
    write_manifest,
)

logger = logging.get_logger(__name__)

TRAINING, EVALUATION = 0, 1  # second part of the keys of noise, after the seed
AVERAGE_OF_SHARDS = 1  # accelerate's index of a second sharded model; the present weights have index 0


@dataclass
class EDLMTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, where optimiser, schedule, precision, compilation and logging are set.

    Raises:
        ValueError: an option that would have no effect (`edlm_hf.training.refused_options`); `muon` with FSDP.
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
        check_fields(self)
        if self.muon and self.fsdp:
            raise ValueError("Muon needs whole matrices, which FSDP splits over processes. Use DDP, or muon=False.")

    def __getstate__(self) -> dict:
        """What a pickle or a copy holds, as training_args.bin: no token of the Hub and no other secret."""
        state = {name: None if is_secret_name(name) else value for name, value in vars(self).items()}
        plain = {name: hide_in_values(value) for name, value in state.items() if isinstance(value, (str, dict, list))}
        return state | plain


def check_model(model) -> None:
    """Raise ValueError unless `model` is a module with a configuration."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"model is a {type(model).__name__}, but it must be a module with a configuration. Load it "
            "(from_pretrained), and give it before args."
        )


class EDLMTrainer(Trainer):
    """`transformers.Trainer` on rows of tokens.

    - An average of the weights (`ema_decay`) is what is evaluated and what every folder holds as its model: a
      `checkpoint-N` is loaded by `from_pretrained` like any other model. The weights that training goes on with are
      beside it.
    - All noise of a step is a function of the seed, the step, the place of a row in the global batch and the position.
      However that is divided between processes and accumulation steps, however wide rows are padded, and wherever the
      run was interrupted, it is the same. So is the loss: it is averaged over the global batch.
    - Tokens whose label in a row is -100 are context, as special tokens and padding are: see `DataCollatorForBlocks`.
    - Evaluation runs over all processes and reports every number with its standard error. Its noise is a function of
      the seed and the index of a row in the data.

    Args:
        model: what is trained, unless `model_init` makes it.
        args: of the trainer's `arguments_class`; its defaults unless given.
        data_collator: `DataCollatorForBlocks` of the model's configuration unless given. What another one gives is
            read by it: `input_ids` (B, L) and what it knows of the columns of a row.
        compute_metrics: adds metrics of its own. `predictions` of the `EvalPrediction` that it gets are the numbers
            measured of every row, arrays (N,) by name (`measured`), zeros for a row of which nothing counts.
        kwargs: of `transformers.Trainer`; `processing_class`, the tokenizer, is saved with the model.

    Raises:
        ValueError: arguments of another class; a model that cannot be trained so; an option that would have no effect
            (`edlm_hf.training.refused_options`); a collator that masks tokens itself.
    """

    arguments_class = EDLMTrainingArguments
    measured: tuple[str, ...] = ()  # what `evaluate_rows` measures, `tokens` among it
    has_folder = False  # whether whoever trains has locked `output_dir` and looked at the checkpoint already
    rows_per_step = 0  # rows of the present step, in all processes and accumulation steps
    items_per_process = 0.0  # what the sums over the present step of this process are divided by

    def __init__(
        self,
        model: nn.Module | None = None,
        args: EDLMTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        compute_metrics: Callable | None = None,
        **kwargs,
    ):
        args = self.arguments_class() if args is None else args
        if not isinstance(args, self.arguments_class):
            raise ValueError(
                f"args is {type(args).__name__}, but {type(self).__name__} takes {self.arguments_class.__name__}, "
                "which has all of TrainingArguments."
            )
        if (model is None) == (kwargs.get("model_init") is None):
            raise ValueError("Give either model or model_init, a function that makes it.")
        check_arguments(args, kwargs | {"data_collator": data_collator, "compute_metrics": compute_metrics})

        self.args, self.processing_class = args, processing_class  # which `prepare_model` reads
        self.average = ExponentialMovingAverage(args.ema_decay)
        self.special_tokens = SpecialTokens()
        ours = [self.special_tokens, self.average] if args.ema_decay else [self.special_tokens]
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), *ours]
        if model is not None:
            model = self.prepare_model(model, processing_class)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=self.compute_row_metrics,
            **kwargs,
        )
        self.compute_own_metrics = compute_metrics
        if not isinstance(data_collator, DataCollatorForBlocks):
            self.data_collator = DataCollatorForBlocks(self.model.config, num_ids(self.model), data_collator)

    def prepare_model(self, model: nn.Module, tokenizer=None) -> nn.Module:
        """Check a model, given or made by `model_init`, and make it ready; the one to be trained is returned.

        Raises:
            ValueError: it cannot be trained by this trainer.
        """
        check_model(model)
        if self.args.attn_implementation:
            model.set_attn_implementation(self.args.attn_implementation)
        self.special_tokens.read(model)
        return model

    def call_model_init(self, trial=None):
        """As usual, and rows then come in the order in which a model that was given sees them."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = super().call_model_init(trial)
        return self.prepare_model(model, self.processing_class)

    def create_optimizer(self, *args, **kwargs):
        """As usual, or Muon with what `args` say now."""
        if self.args.muon:
            options = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            options |= {"eps": self.args.adam_epsilon, "betas": (self.args.adam_beta1, self.args.adam_beta2)}
            self.optimizer_cls_and_kwargs = (lambda: MuonAdamW), options  # the Trainer's form for whole models
        return super().create_optimizer(*args, **kwargs)

    def _set_signature_columns_if_needed(self):
        """As usual; what the collator reads of a row is kept too."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "input_ids", *ROW_COLUMNS]))

    # ------------------------------------------------------------------------------------------------- the global batch

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """What the loss is averaged over: (B, L) -> (B, n) bool, here tokens that count."""
        return labels != -100

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As usual; every batch learns where its rows stand in the global batch."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.place_rows(batches, device)
        return batches, num_items

    def place_rows(self, batches: list[dict], device: torch.device) -> None:
        """Note in each of these batches of a step the place of its first row, and count what the step averages over.

        Rows stand in the order in which samplers deal them out: by accumulation step, then by process.

        Raises:
            ValueError: nothing counts in the whole step.
        """
        # Rows and items of every batch: (steps, 2) of this process, (processes, steps) each of all
        sizes = torch.zeros(self.args.gradient_accumulation_steps, 2, dtype=torch.long, device="cpu")
        for i, batch in enumerate(batches):
            sizes[i, 0] = len(batch["labels"])
            sizes[i, 1] = self.items(batch["labels"]).sum()
        rows, items = self.accelerator.gather(sizes.to(device).unsqueeze(0)).cpu().unbind(-1)
        if not items.any():
            raise ValueError(
                f"Nothing counts in step {self.state.global_step + 1}: its {rows.sum()} rows are padding, special "
                "tokens and tokens that their labels (or masks) make context. Leave such rows out."
            )

        counts = rows.T.flatten()
        before = (counts.cumsum(0) - counts).view(-1, len(rows))
        for i, batch in enumerate(batches):
            batch["first_row"] = int(before[i, self.args.process_index])
        self.rows_per_step = int(rows.sum())

        self.items_per_process = float(items.sum()) / len(items)  # gradients are averaged over processes
        if not self.args.average_tokens_across_devices:
            self.items_per_process = max(1.0, float(items[self.args.process_index].sum()))

    def noise(self, *shapes: tuple[int, ...], rows: slice) -> Iterator[torch.Tensor]:
        """Uniforms of the present step on the device: one for the step, then (rows, *shape) for every shape.

        Args:
            rows: of the global batch.
        """
        key = self.args.seed, TRAINING, self.state.global_step
        return self.uniforms(key, range(self.rows_per_step)[rows], *shapes)

    def uniforms(self, key: Sequence[int], rows: Sequence[int], *shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """`row_uniforms` on the device; float64, or float32 where the device has no other (MPS)."""
        precision = torch.float32 if self.args.device.type == "mps" else torch.float64
        for drawn in row_uniforms(key, rows, *shapes):
            yield drawn.to(precision).to(self.args.device)

    # ------------------------------------------------------------------------------------------------------- evaluation

    def evaluate_rows(self, inputs: dict, numbers: list[int]) -> dict[str, torch.Tensor]:
        """What one batch of evaluation measures: sums (B,) per row, by the names in `measured`.

        Args:
            inputs: a batch of the collator, on the device; in every row something counts.
            numbers: of its rows in the data, B of them: the noise is a function of the seed and of these.
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

    def _get_eval_sampler(self, eval_dataset):
        """None: the order of the data, whatever that of training, since the noise is a function of a row's number."""

    def evaluation_loop(self, *args, **kwargs):
        """As usual, with the averaged weights."""
        self.rows_evaluated = 0
        self.tables: list[torch.Tensor] = []  # measurements (rows, names)
        with self.averaged_weights(), whole_weights(self.model):
            output = super().evaluation_loop(*args, **kwargs)
        if not self.tables:
            raise ValueError("There are no rows to evaluate: eval_dataset is empty. Give at least one.")
        predictions = None if self.args.prediction_loss_only else output.predictions
        return output._replace(predictions=predictions, label_ids=None)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """(None, measurements (B, names), B zeros): the Trainer gathers them over processes, without the doubles.

        Rows in which nothing counts are left out: their measurements are zeros.
        """
        inputs = self._prepare_inputs(inputs)
        batch = len(inputs["labels"])
        first = self.rows_evaluated + self.args.process_index * batch
        self.rows_evaluated += self.args.world_size * batch

        counting = self.items(inputs["labels"]).any(-1)
        numbers = (first + counting.nonzero()[:, 0]).tolist()
        table = torch.zeros(batch, len(self.measured), device=self.args.device)
        if numbers:
            with torch.no_grad():
                found = self.evaluate_rows({name: x[counting] for name, x in inputs.items()}, numbers)
            table[counting] = torch.stack([found[name].to(table) for name in self.measured], dim=-1)
        return None, table, torch.zeros(batch, device=table.device)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Metrics of the averaged weights on the evaluation data; see `summarise` of the trainer."""
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def compute_row_metrics(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """The metrics of all rows, the user's after ours; with `batch_eval_metrics` called for every batch.

        Raises:
            ValueError: nothing counts in any row.
        """
        tables = prediction.predictions  # several with eval_do_concat_batches=False
        tables = tables if isinstance(tables, list) else [tables]
        table = torch.cat([torch.as_tensor(x, device="cpu") for x in tables])
        self.tables.append(table)
        own = {}
        if self.compute_own_metrics is not None and not self.args.prediction_loss_only:
            rows = dict(zip(self.measured, table.numpy().T, strict=True))
            flag = {"compute_result": compute_result} if self.args.batch_eval_metrics else {}
            own = self.compute_own_metrics(EvalPrediction(rows, None, inputs=prediction.inputs), **flag)
        if not compute_result:
            return {}

        rows = dict(zip(self.measured, torch.cat(self.tables).double().unbind(-1), strict=True))
        counting = rows["tokens"] > 0
        if not counting.any():
            raise ValueError(
                f"Nothing counts in the {len(counting)} rows of the evaluation: they are padding, special tokens and "
                "tokens that their labels (or masks) make context. Give rows with something to predict."
            )
        metrics = self.summarise({name: x[counting] for name, x in rows.items()})
        if self.args.prediction_loss_only:
            return {name: metrics[name] for name in ("loss", "loss_standard_error")}
        return metrics | own

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
        """Nothing: `save_model` writes the card of the model (`edlm_hf.sharing`), which a push keeps."""

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, **kwargs):
        """As `Trainer.push_to_hub`, of what a model repository consists of alone (see `push_folder`)."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # args.push_to_hub is not set
            self.init_hf_repo(token, **{name: kwargs[name] for name in ("private",) if name in kwargs})
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None

        self._finish_current_push()
        options = {
            "commit_message": commit_message,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
            "tags": kwargs.get("tags"),
        }
        push = push_folder if blocking else push_in_background
        return push(self.args.output_dir, self.hub_model_id, **options)

    def _push_from_checkpoint(self, checkpoint_folder):
        """As in transformers (`hub_strategy`), without `training_args.bin` and whatever else is in `output_dir`."""
        strategy, pushes = self.args.hub_strategy, self.push_in_progress
        busy = pushes is not None and not pushes.is_done()
        if not self.is_world_process_zero() or strategy == HubStrategy.END or (busy and not self.args.hub_always_push):
            return

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        job = push_checkpoint(
            checkpoint_folder,
            self.hub_model_id,
            places.get(strategy),
            commit_message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
        )
        self.push_in_progress = PushInProgress([*(pushes.jobs if busy else []), job])

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As usual, alone in `output_dir`, and from a checkpoint that is whole: True stands for the newest such.

        Raises:
            ValueError: another run works in the folder; the checkpoint lacks a part or is damaged, or there is none.
        """
        if self.has_folder:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        folder = self.args.output_dir
        checkpoint = named_checkpoint(resume_from_checkpoint, folder, bool(self.args.ema_decay))
        with nullcontext() if self.args.process_index else FolderLock(folder):
            return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """As usual; the last word makes it complete. One that is written again is not, until then."""
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            for name in (MANIFEST, TRAINER_STATE_NAME):
                (folder / name).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        if self.args.should_save and folder.exists():
            write_manifest(folder)

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
        best = self.state.best_model_checkpoint
        fault = fault_of_checkpoint(best, bool(self.args.ema_decay)) if not self.args.save_only_model else None
        if fault:
            logger.warning(f"The best checkpoint is not whole ({fault}): the weights of the last step are kept.")
            return
        super()._load_best_model()
        self.average.restart(self.model)

    def present_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}


class SpecialTokens(TrainerCallback):
    """Keeps the start, end and padding tokens that the configurations of a model name.

    They say which tokens count. The Trainer would replace them by the tokenizer's when it begins, after the collator
    has read them: rows would be trained by some, and evaluated and saved with others.
    """

    NAMES = "bos_token_id", "eos_token_id", "pad_token_id"

    def read(self, model: nn.Module) -> None:
        configs = model.config.get_text_config(), getattr(model, "generation_config", None)
        self.kept = [(config, name, getattr(config, name, None)) for config in configs for name in self.NAMES]

    def on_train_begin(self, *args, **kwargs):
        for config, name, value in self.kept:
            if getattr(config, name, None) != value:
                setattr(config, name, value)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
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


def is_character_level(tokenizer) -> bool:
    """Whether every token of a tokenizer, special ones aside, is a single character."""
    if tokenizer is None:
        return False
    return all(len(token) == 1 for token in set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


__all__ = ["EDLMTrainer", "EDLMTrainingArguments"]
