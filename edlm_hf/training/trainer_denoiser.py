"""Training of the denoiser by the continuous-time bound (MDLM, arXiv 2406.07524)."""

from dataclasses import dataclass, field

import torch

from edlm_hf.evaluation import nelbo
from edlm_hf.loading import as_masked_diffusion
from edlm_hf.modeling.component_checks import check_denoiser
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.training.objectives import bound_weight, importance_times, low_discrepancy_times, masked_token_losses
from edlm_hf.training.trainer_base import EDLMTrainer, EDLMTrainingArguments, check_model


@dataclass
class MaskedDiffusionArguments(EDLMTrainingArguments):
    importance_sampling: bool = field(
        default=False,
        metadata={
            "help": "Draw times with a density proportional to the weight of the bound (for log-linear noise 1/t)."
        },
    )
    eval_noise_samples: int = field(default=2, metadata={"help": "Noise samples per text in evaluation, 1 or even."})


class MaskedDiffusionTrainer(EDLMTrainer):
    """Minimises E int_0^1 w(t) sum_{i in M} -log p_theta(x_0^i | x_t) dt, in nats per token, w(t) = 1/t if log-linear.

    x_t masks every token that is modelled (`DataCollatorForBlocks`) with probability 1 - alpha_t. The loss is the sum
    over the global batch divided by its number of modelled tokens, masked or not.

    `evaluate()` gives that bound by `edlm_hf.evaluation.nelbo`: nats per token, perplexity, bits per token (or
    character), with standard errors over texts.

    Args:
        model: an `MDLMForMaskedLM`, or any other masked language model, which then is the denoiser of an
            `EDLMForMaskedDiffusion` without energy: that is trained in its place, and saved.
        args: `MaskedDiffusionArguments`. Others as in `EDLMTrainer`.

    Raises:
        ValueError: as `EDLMTrainer`; the model is causal, its noise schedule does not reach the full mask, or nothing
            says which token is its mask.
    """

    arguments_class = MaskedDiffusionArguments
    measured = ("nats", "tokens")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is that of the whole step: it is not averaged once more

    def prepare_model(self, model, tokenizer=None):
        check_model(model)
        check_denoiser(model)
        model = super().prepare_model(as_masked_diffusion(model, tokenizer))
        self.schedule = make_schedule(model.config.noise_schedule, **(model.config.noise_schedule_params or {}))
        self.schedule.check_reaches_full_mask()
        return model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        clean, labels = inputs["input_ids"], inputs["labels"]
        first, modelled = inputs["first_row"], labels != -100
        shift, within, places = self.noise((), clean.shape[1:], rows=slice(first, first + len(clean)))

        if self.args.importance_sampling:
            # t with density w(t) / int w, every term with the weight int w
            times = low_discrepancy_times(within, self.rows_per_step, first, shift)
            t, weight = importance_times(self.schedule, times)
        else:
            t = low_discrepancy_times(within, self.rows_per_step, first, shift)
            weight = bound_weight(self.schedule, t).unsqueeze(1)

        # q(x_t | x_0): every token is masked with probability 1 - alpha_t
        masked = modelled & (places < (1 - self.schedule.alpha(t)).unsqueeze(1))
        noisy = clean.masked_fill(masked, self.model.config.mask_token_id)
        sigma = self.schedule.total(t).float()
        outputs = model(input_ids=noisy, attention_mask=inputs.get("attention_mask"), timesteps=sigma)

        losses = masked_token_losses(outputs.logits, clean, masked, self.model.config.mask_token_id)
        loss = (losses * weight).sum().to(losses.dtype) / self.items_per_process
        return (loss, outputs) if return_outputs else loss

    def evaluate_rows(self, inputs, numbers):
        estimate = nelbo(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            scored=inputs["labels"] != -100,
            num_samples=self.args.eval_noise_samples,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
            text_numbers=numbers,
        )
        columns = {"nats": estimate.sequence_nats, "tokens": estimate.sequence_tokens}
        return {name: torch.tensor(values, device="cpu") for name, values in columns.items()}

    def summarise(self, rows):
        return self.token_metrics(rows["nats"], rows["tokens"])


__all__ = ["MaskedDiffusionArguments", "MaskedDiffusionTrainer"]
