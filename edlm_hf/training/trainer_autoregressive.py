"""Training of the autoregressive baseline, which is also the AR energy."""

import torch

from edlm_hf.evaluation import autoregressive_nll
from edlm_hf.training.trainer_base import EDLMTrainer


class AutoregressiveTrainer(EDLMTrainer):
    """Minimises -log p_AR(x_i | x_<i) per token of a causal language model; the loss is the model's own.

    Rows begin with the model's start token if it has one (`to_blocks(..., start_token=True)`), as its energies and its
    likelihoods put it there. `evaluate()` gives `edlm_hf.evaluation.autoregressive_nll`.

    Args:
        model: an `MDLMForCausalLM` or any other causal language model.
        args: `EDLMTrainingArguments`. Others as in `EDLMTrainer`.

    Raises:
        ValueError: as `EDLMTrainer`; the model is not causal.
    """

    measured = ("nats", "tokens")

    def prepare_model(self, model, tokenizer=None):
        model = super().prepare_model(model, tokenizer)
        if not getattr(model.config, "causal", True):
            raise ValueError(
                f"The model is a {type(model).__name__}, which sees the token that it is to predict. Train it with "
                "MaskedDiffusionTrainer, or pass a causal language model."
            )
        return model

    def items(self, labels):
        """Tokens that are predicted: the first one of a row never is."""
        return labels[:, 1:] != -100

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "first_row"}
        predicted = int(self.items(inputs["labels"]).sum())
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not self.model_accepts_loss_kwargs:
            # The model's mean over this batch, which the Trainer divides by the batches of the step
            share = predicted / self.items_per_process * self.current_gradient_accumulation_steps
            loss = loss * share if predicted else 0 * outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss

    def evaluate_rows(self, inputs, numbers):
        estimate = autoregressive_nll(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            scored=inputs["labels"] != -100,
            batch_size=self.args.eval_batch_size,
        )
        columns = {"nats": estimate.sequence_nats, "tokens": estimate.sequence_tokens}
        return {name: torch.tensor(values, device="cpu") for name, values in columns.items()}

    def summarise(self, rows):
        return self.token_metrics(rows["nats"], rows["tokens"])


__all__ = ["AutoregressiveTrainer"]
