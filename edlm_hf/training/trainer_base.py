"""The base class of the trainers of this package."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import Trainer

from edlm_hf.adapter_loading import name_base_of_adapters
from edlm_hf.modeling.edlm_pretrained import EDLMPreTrainedModel
from edlm_hf.modeling.network_facts import num_ids
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.averaging import ExponentialMovingAverage
from edlm_hf.training.collators import ROW_COLUMNS, DataCollatorForBlocks
from edlm_hf.training.freezing import thaw
from edlm_hf.training.global_batch import GlobalBatchMixin
from edlm_hf.training.optimizers import MuonAdamW
from edlm_hf.training.refused_options import check_arguments
from edlm_hf.training.resuming import ResumingMixin
from edlm_hf.training.row_evaluation import RowEvaluationMixin
from edlm_hf.training.saving import SavingMixin
from edlm_hf.training.special_tokens import SpecialTokens


class EDLMTrainer(GlobalBatchMixin, RowEvaluationMixin, SavingMixin, ResumingMixin, Trainer):
    """`transformers.Trainer` on rows of tokens.

    - An average of the weights (`ema_decay`) is evaluated, and every folder holds it as its model:
      a `checkpoint-N` is loaded by `from_pretrained` like any other model. The weights that
      training goes on with are beside it.
    - All noise of a step is a function of the seed, the step, the index of a row in the global
      batch and the position. It stays the same however that batch is divided between processes and
      accumulation steps, however wide rows are padded, and wherever the run was interrupted. So
      does the loss, which is averaged over the global batch.
    - Tokens whose label in a row is -100 are context, like special tokens and padding: see
      `DataCollatorForBlocks`.
    - Evaluation runs over all processes and reports every number with its standard error. Its noise
      is a function of the seed and the index of a row in the data.

    Each of the four has a file: `saving.py` and `resuming.py`, `global_batch.py`, `collators.py`
    and `row_evaluation.py`. The training step is the `compute_loss` of a subclass.

    Args:
        model: the model to train, unless `model_init` makes it.
        args: of the trainer's `arguments_class`, whose defaults are used unless given.
        data_collator: `DataCollatorForBlocks` of the model's configuration unless given. It reads
            the batches of another collator: `input_ids` (B, L) and the columns of rows that it
            knows.
        train_dataset: rows to train on.
        eval_dataset: rows to evaluate on.
        processing_class: the tokenizer, which is saved with the model.
        compute_metrics: adds metrics of its own. `predictions` of the `EvalPrediction` that it gets
            are the measurements of every row, arrays (N,) by name (`measured`), zeros for a row of
            which nothing counts.
        kwargs: of `transformers.Trainer`.

    Raises:
        ValueError: `args` are of another class, the model cannot be trained so, the collator masks
            tokens itself, or an option would have no effect (`edlm_hf.training.refused_options`).
    """

    arguments_class = EDLMTrainingArguments

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
        # 1. Check the arguments before anything is changed
        args = self.arguments_class() if args is None else args
        if not isinstance(args, self.arguments_class):
            raise ValueError(
                f"args is {type(args).__name__}, but {type(self).__name__} takes "
                f"{self.arguments_class.__name__}, which has all of TrainingArguments."
            )
        if (model is None) == (kwargs.get("model_init") is None):
            raise ValueError("Give either model or model_init, a function that makes it.")
        given = {"data_collator": data_collator, "compute_metrics": compute_metrics}
        check_arguments(args, kwargs | given)

        # 2. The parts that act on every model, given or made by `model_init`
        self.args = args
        self.processing_class = processing_class
        self.average = ExponentialMovingAverage(args.ema_decay)
        self.special_tokens = SpecialTokens()
        callbacks = [*(kwargs.get("callbacks") or []), self.special_tokens]
        if args.ema_decay:
            callbacks.append(self.average)
        if model is not None:
            model = self.prepare_model(model, processing_class)

        # 3. The Trainer
        self.compute_own_metrics = compute_metrics
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=self.compute_row_metrics,
            **(kwargs | {"callbacks": callbacks}),
        )

        # Any other collator is wrapped, so that its batches are read as rows
        if not isinstance(data_collator, DataCollatorForBlocks):
            config = self.model.config
            self.data_collator = DataCollatorForBlocks(config, num_ids(self.model), data_collator)

    def prepare_model(self, model: nn.Module, tokenizer=None) -> nn.Module:
        """Check a model, make it ready, and return the one to be trained.

        Raises:
            ValueError: it cannot be trained by this trainer, or a checkpoint could not be loaded.
        """
        # A model whose folder could not be loaded is refused before the training, not after it
        check_model(model)
        if self.args.save_strategy != "no" and isinstance(model, EDLMPreTrainedModel):
            model.check_loadable()

        name_base_of_adapters(model)
        if self.args.attn_implementation:
            model.set_attn_implementation(self.args.attn_implementation)
        self.special_tokens.read(model)
        return model

    def freeze_rest(self, model: nn.Module) -> None:
        """Freeze the weights that this trainer does not train. Here: none."""

    def train(self, *args, **kwargs):
        """As usual. What an earlier trainer in this process froze is trainable again.

        Raises:
            ValueError: `metric_for_best_model` is not measured.
        """
        self.check_best_metric()
        if self.model is not None:
            thaw(self.model)
            self.freeze_rest(self.model)
        return super().train(*args, **kwargs)

    def call_model_init(self, trial=None):
        """As usual. The rows come in the order in which a model that was given sees them."""
        # What the initialisation draws must not move the generators that shuffle the rows
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = super().call_model_init(trial)
        return self.prepare_model(model, self.processing_class)

    def create_optimizer(self, *args, **kwargs):
        """As usual, or Muon with the present values of `args`."""
        if self.args.muon:
            options = {
                "lr": self.args.learning_rate,
                "weight_decay": self.args.weight_decay,
                "betas": (self.args.adam_beta1, self.args.adam_beta2),
                "eps": self.args.adam_epsilon,
            }
            # The Trainer's form for an optimizer of the whole model
            self.optimizer_cls_and_kwargs = (lambda: MuonAdamW), options
        return super().create_optimizer(*args, **kwargs)

    def _set_signature_columns_if_needed(self):
        """As usual, and keep the columns that the collator reads."""
        # Without duplicates, in their order
        super()._set_signature_columns_if_needed()
        columns = [*self._signature_columns, "input_ids", *ROW_COLUMNS]
        self._signature_columns = list(dict.fromkeys(columns))


def check_model(model) -> None:
    """Raise ValueError unless `model` is a module with a configuration."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"model is a {type(model).__name__}, but it must be a module with a configuration. "
            "Load it (from_pretrained), and give it before args."
        )


__all__ = ["EDLMTrainer"]
