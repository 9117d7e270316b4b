"""Training of the autoregressive baseline, which is also the AR energy."""

import torch

from edlm_hf.evaluation import autoregressive_nll
from edlm_hf.training.trainer_base import EDLMTrainer, EDLMTrainingArguments


class AutoregressiveTrainer(EDLMTrainer):
    """Minimises -log p_AR(x_i | x_<i) per token of a causal language model; the loss is the model's own.

    Rows begin with the model's start token if it has one (`to_blocks(..., start_token=True)`), as its energies and its
    likelihoods put it there. `evaluate()` gives `edlm_hf.evaluation.autoregressive_nll`.

    Args:
        model: an `MDLMForCausalLM` or any other causal language model. args: `EDLMTrainingArguments`.

    Raises:
        ValueError: the model is not causal.
    """

    def __init__(self, model, args: EDLMTrainingArguments, **kwargs):
        if not getattr(model.config, "causal", True):
            raise ValueError(
                f"The model is a {type(model).__name__}, which sees the token that it is to predict. Train it with "
                "MaskedDiffusionTrainer, or pass a causal language model."
            )
        super().__init__(model, args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "first_row"}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate_rows(self, inputs, seed):
        estimate = autoregressive_nll(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            scored=inputs["labels"] != -100,
            batch_size=self.args.eval_batch_size,
        )
        return {"nats": torch.tensor(estimate.sequence_nats), "tokens": torch.tensor(estimate.sequence_tokens)}

    def summarise(self, rows):
        return self.token_metrics(rows["nats"], rows["tokens"])


__all__ = ["AutoregressiveTrainer"]
