"""A part of the trainers: evaluation row by row, with a standard error of every number.

Shapes: B rows of one batch, N rows of the data.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import EvalPrediction

from edlm_hf.evaluation.estimate import LARGEST_EXPONENT, ratio_estimate

# A character of two bytes in UTF-8, which a tokenizer of characters may not know
BEYOND_ASCII = "\u0416"

# Metrics that the Trainer adds
OF_THE_TRAINER = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class RowEvaluationMixin:
    """Evaluation over all processes. Its noise is a function of the seed and a row's number.

    A trainer says what it measures of a batch (`evaluate_rows`) and how that becomes metrics
    (`summarise`). The Trainer's loop gathers the measurements of all rows in between.

    Attributes:
        measured: names of the measurements of a row, `tokens` among them.
        compute_own_metrics: the user's `compute_metrics`.
    """

    measured: tuple[str, ...] = ()

    def evaluate_rows(self, inputs: dict, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Measure one batch: sums (B,) over every row, by the names in `measured`.

        Args:
            inputs: a batch of the collator, on the device. In every row something counts.
            numbers: of its B rows in the data. The noise is a function of the seed and of these.
        """
        raise NotImplementedError

    def summarise(self, rows: dict[str, torch.Tensor]) -> dict[str, float]:
        """Make metrics, `loss` among them, from the measurements (N,) of all rows."""
        raise NotImplementedError

    def check_best_metric(self) -> None:
        """Raise ValueError if `metric_for_best_model` names a metric that no evaluation gives.

        Metrics of the user, and of several sets by their names, are known only after an evaluation.
        """
        name = self.args.metric_for_best_model
        names_are_known = self.compute_own_metrics is None and not isinstance(self.eval_dataset, dict)
        if name is None or not names_are_known:
            return

        # The metrics of four made-up rows, with a time in every quarter
        values = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
        names = list(self.summarise(dict.fromkeys(self.measured, values)))
        if self.args.prediction_loss_only:
            names = ["loss", "loss_standard_error"]
        if name.removeprefix("eval_") not in (*names, *OF_THE_TRAINER):
            raise ValueError(f"metric_for_best_model is {name!r}, but an evaluation measures {', '.join(names)}.")

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Metrics of the averaged weights on the evaluation data, see `summarise`."""
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args, **kwargs):
        """The Trainer's loop, with the averaged weights."""
        self.rows_evaluated = 0
        self.tables: list[torch.Tensor] = []  # of measurements, (rows, names)
        with self.averaged_weights(), whole_weights(self.model):
            output = super().evaluation_loop(*args, **kwargs)

        if not self.tables:
            problem = "There are no rows to evaluate: eval_dataset is empty."
            raise ValueError(f"{problem} Give at least one.")
        predictions = None if self.args.prediction_loss_only else output.predictions
        return output._replace(predictions=predictions, label_ids=None)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Measure one batch.

        Rows in which nothing counts are left out: their measurements are zeros.

        Returns:
            None, the measurements (B, names), and B zeros in place of labels. The Trainer gathers
            them over processes, and leaves out rows that samplers have repeated.
        """
        # The numbers of the rows in the data, which processes take in turns
        inputs = self._prepare_inputs(inputs)
        batch_size = len(inputs["labels"])
        first = self.rows_evaluated + self.args.process_index * batch_size
        self.rows_evaluated += self.args.world_size * batch_size

        # The rows in which something counts, and their numbers
        counting = self.items(inputs["labels"]).any(-1)  # (B,)
        numbers = (first + counting.nonzero()[:, 0]).tolist()

        # (B, names), one column for each of `measured`
        table = torch.zeros(batch_size, len(self.measured), device=self.args.device)
        if numbers:
            chosen = {name: x[counting] for name, x in inputs.items()}
            with torch.no_grad():
                measurements = self.evaluate_rows(chosen, numbers)
            columns = [measurements[name].to(table) for name in self.measured]
            table[counting] = torch.stack(columns, -1)

        # The Trainer computes metrics only where there are labels
        labels = torch.zeros(batch_size, device=table.device)
        return None, table, labels

    def compute_row_metrics(
        self,
        prediction: EvalPrediction,
        compute_result: bool = True,
    ) -> dict[str, float]:
        """Make the metrics of all rows, ours and the user's.

        Args:
            prediction: the measurements.
            compute_result: False for a batch before the last one, with `batch_eval_metrics`.

        Raises:
            ValueError: nothing counts in any row.
        """
        # 1. Measurements (rows, names). There are several tables with eval_do_concat_batches=False.
        tables = prediction.predictions
        tables = tables if isinstance(tables, list) else [tables]
        table = torch.cat([torch.as_tensor(x, device="cpu") for x in tables])
        self.tables.append(table)

        # The user's metrics see every batch, ours need all rows
        own = self.own_metrics(table, prediction.inputs, compute_result)
        if not compute_result:
            return {}

        # 2. The rows in which something counts, (N,) each
        columns = torch.cat(self.tables).double().unbind(-1)
        rows = dict(zip(self.measured, columns, strict=True))
        counting = rows["tokens"] > 0
        if not counting.any():
            raise ValueError(
                f"Nothing counts in the {len(counting)} rows of the evaluation: they are padding, "
                "special tokens and tokens that their labels (or masks) make context. Give rows "
                "with something to predict."
            )

        # 3. Their metrics
        chosen = {name: x[counting] for name, x in rows.items()}
        metrics = self.summarise(chosen)
        if self.args.prediction_loss_only:
            return {name: metrics[name] for name in ("loss", "loss_standard_error")}
        return metrics | own

    def own_metrics(self, table: torch.Tensor, inputs, compute_result: bool) -> dict[str, float]:
        """The metrics of the user's `compute_metrics`, from measurements (rows, names)."""
        if self.compute_own_metrics is None or self.args.prediction_loss_only:
            return {}

        # Name -> (rows,)
        rows = dict(zip(self.measured, table.numpy().T, strict=True))
        prediction = EvalPrediction(rows, None, inputs=inputs)
        arguments = {"compute_result": compute_result} if self.args.batch_eval_metrics else {}
        metrics = self.compute_own_metrics(prediction, **arguments)

        # Before the last batch there may be no result yet
        if metrics is None and self.args.batch_eval_metrics and not compute_result:
            return {}
        if not isinstance(metrics, dict):
            raise ValueError(
                f"compute_metrics returned a {type(metrics).__name__}, but a dictionary of numbers by name is needed."
            )
        return metrics

    def token_metrics(self, nats: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        """Metrics of a likelihood with standard errors over texts, from nats and tokens (N,).

        The loss in nats per token, the perplexity, and bits per token (or character).
        """
        loss = ratio_estimate(nats, tokens, "nats/token")
        perplexity = math.exp(min(loss.value, LARGEST_EXPONENT))

        # The error of exp(x) is exp(x) times the error of x, to first order
        unit = "character" if is_character_level(self.processing_class) else "token"
        return {
            "loss": loss.value,
            "loss_standard_error": loss.standard_error,
            "perplexity": perplexity,
            "perplexity_standard_error": perplexity * loss.standard_error,
            f"bits_per_{unit}": loss.value / math.log(2),
            f"bits_per_{unit}_standard_error": loss.standard_error / math.log(2),
        }

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs):
        """As usual, but `dataloader_drop_last` concerns training alone: every row is evaluated."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset):
        """None: rows keep the order of the data, because their noise depends on their numbers."""


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gather the parameters that FSDP splits, so that parts of a model can be called alone."""
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
    """Whether every token of a tokenizer, special ones aside, is a single character, and no part of one."""
    if tokenizer is None:
        return False

    # Tokens of bytes look like characters, but one more character outside ASCII has several of them
    once, twice = (len(tokenizer.tokenize(BEYOND_ASCII * count)) for count in (1, 2))
    if twice - once > 1:
        return False

    vocabulary = set(tokenizer.get_vocab())
    ordinary = vocabulary - set(tokenizer.all_special_tokens)
    return all(len(token) == 1 for token in ordinary)


__all__ = ["RowEvaluationMixin", "is_character_level"]
