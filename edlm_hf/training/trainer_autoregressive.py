"""Training of the autoregressive baseline, which is also the AR energy."""

import torch

from edlm_hf.evaluation import autoregressive_nll
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.trainer_base import EDLMTrainer


class AutoregressiveTrainer(EDLMTrainer):
    """Minimises -log p_AR(x_i | x_<i) per token of a causal language model, by its own loss.

    Rows begin with the model's start token if it has one (`to_blocks(..., start_token=True)`), as
    in its energies and its likelihoods. `evaluate()` gives `edlm_hf.evaluation.autoregressive_nll`.

    The arguments are those of `EDLMTrainer`, with `EDLMTrainingArguments`. The model is an
    `MDLMForCausalLM` or any other causal language model.

    Raises:
        ValueError: as in `EDLMTrainer`, or the model is not causal.
    """

    measured = ("nats", "tokens")

    def prepare_model(self, model, tokenizer=None):
        model = super().prepare_model(model, tokenizer)
        if not getattr(model.config, "causal", True):
            raise ValueError(
                f"The model is a {type(model).__name__}, which sees the token that it is to "
                "predict. Train it with MaskedDiffusionTrainer, or pass a causal language model."
            )
        return model

    def items(self, labels):
        """Tokens that are predicted, (B, L - 1) bool: the first token of a row never is."""
        return labels[:, 1:] != CONTEXT_LABEL

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # No noise is drawn here, and the model does not know the argument
        inputs = {name: value for name, value in inputs.items() if name != "first_row"}
        num_predicted = int(self.items(inputs["labels"]).sum())
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)

        # A model that takes no `num_items_in_batch` gives its mean over this batch, where the sum
        # over this batch / the items of the step is needed. The Trainer will divide the loss by the
        # number of batches.
        if not self.model_accepts_loss_kwargs and num_predicted:
            num_batches = self.current_gradient_accumulation_steps
            scale = num_predicted / self.items_per_process * num_batches
            loss = loss * scale
        elif not self.model_accepts_loss_kwargs:
            # The mean over no token is NaN, but DDP waits for a gradient of every weight
            loss = 0 * outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss

    def evaluate_rows(self, inputs, numbers):
        estimate = autoregressive_nll(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            scored=inputs["labels"] != CONTEXT_LABEL,
            batch_size=self.args.eval_batch_size,
        )

        # Per text, (B,)
        return {
            "nats": torch.tensor(estimate.sequence_nats, device="cpu"),
            "tokens": torch.tensor(estimate.sequence_tokens, device="cpu"),
        }

    def summarise(self, rows):
        return self.token_metrics(rows["nats"], rows["tokens"])


__all__ = ["AutoregressiveTrainer"]
