"""Training of the denoiser by the continuous-time bound (MDLM, arXiv 2406.07524)."""

from dataclasses import dataclass, field

import torch

from edlm_hf.evaluation import nelbo
from edlm_hf.loading import as_masked_diffusion
from edlm_hf.modeling.component_checks import check_denoiser
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.modeling.network_facts import accepts
from edlm_hf.old_names import takes_old_names
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.objectives import (
    bound_weight,
    importance_times,
    low_discrepancy_times,
    masked_token_losses,
)
from edlm_hf.training.trainer_base import EDLMTrainer, check_model


@takes_old_names
@dataclass
class MaskedDiffusionArguments(EDLMTrainingArguments):
    """Options of `MaskedDiffusionTrainer`."""

    importance_sampling: bool = field(
        default=False,
        metadata={
            "help": "Draw times with a density proportional to the weight of the bound (for log-linear noise 1/t).",
        },
    )
    eval_num_samples: int = field(
        default=2,
        metadata={"help": "Noise samples per text in evaluation, 1 or even."},
    )


class MaskedDiffusionTrainer(EDLMTrainer):
    """Minimises the bound E int_0^1 w(t) sum_{i in M} -log p_theta(x_0^i | x_t) dt.

    x_t masks every token that is modelled (`DataCollatorForBlocks`) with probability 1 - alpha_t,
    and w(t) = 1 / t for log-linear noise. The loss, in nats per token, is the sum over the global
    batch divided by its number of modelled tokens, masked or not.

    `evaluate()` gives that bound by `edlm_hf.evaluation.nelbo`: nats per token, perplexity, bits
    per token (or character), with standard errors over texts.

    The arguments are those of `EDLMTrainer`, with `MaskedDiffusionArguments`. The model is an
    `MDLMForMaskedLM`, or any other masked language model. That one then becomes the denoiser of an
    `EDLMForMaskedDiffusion` without energy, which is trained and saved.

    Raises:
        ValueError: as in `EDLMTrainer`, or the model is causal, its noise schedule does not reach
            the full mask, or nothing says which token is its mask.
    """

    arguments_class = MaskedDiffusionArguments
    measured = ("nats", "tokens")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The loss is divided by the items of the whole step: the Trainer must not average it again
        self.model_accepts_loss_kwargs = True

    def prepare_model(self, model, tokenizer=None):
        check_model(model)
        check_denoiser(model)
        model = super().prepare_model(as_masked_diffusion(model, tokenizer))

        # Draft heads have no part in this loss: `DraftTrainer` trains them
        for name in ("draft_head", "first_draft"):
            head = getattr(model, name, None)
            if head is not None:
                head.requires_grad_(False)

        parameters = model.config.noise_schedule_params or {}
        self.schedule = make_schedule(model.config.noise_schedule, **parameters)
        self.schedule.check_reaches_full_mask()
        return model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The bound at one time per row, divided by the modelled tokens of the step."""
        clean = inputs["input_ids"]  # (B, L)
        modelled = inputs["labels"] != CONTEXT_LABEL
        mask_token_id = self.model.config.mask_token_id

        # Uniforms: one for the step, (B,) for the times, (B, L) for the masks
        first = inputs["first_row"]
        rows = slice(first, first + len(clean))
        shift, time_uniforms, mask_uniforms = self.noise((), clean.shape[1:], rows=rows)

        # 1. t and w(t), (B,)
        t = low_discrepancy_times(time_uniforms, self.rows_per_step, first, shift)
        if self.args.importance_sampling:
            # t has the density w(t) / int w, so that every term has the weight int w
            t, weight = importance_times(self.schedule, t)
        else:
            weight = bound_weight(self.schedule, t).unsqueeze(1)

        # 2. x_t ~ q(x_t | x_0): every token is masked with probability 1 - alpha_t
        chance = (1 - self.schedule.alpha(t)).unsqueeze(1)  # (B, 1)
        masked = modelled & (mask_uniforms < chance)
        noisy = clean.masked_fill(masked, mask_token_id)

        # 3. Logits of M(x_t), (N, V) at the N masks alone where the model can leave out the rest
        arguments = {
            "input_ids": noisy,
            "attention_mask": inputs.get("attention_mask"),
            "timesteps": self.schedule.total(t).float(),
        }
        if accepts(self.model, "logits_at"):
            arguments["logits_at"] = masked
        outputs = model(**arguments)

        # 4. w(t) sum_{i in M} -log p_theta(x_0^i | x_t), over all rows
        losses = masked_token_losses(outputs.logits, clean, masked, mask_token_id)
        total = (losses * weight).sum()
        loss = total.to(losses.dtype) / self.items_per_process
        return (loss, outputs) if return_outputs else loss

    def evaluate_rows(self, inputs, numbers):
        estimate = nelbo(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            scored=inputs["labels"] != CONTEXT_LABEL,
            num_samples=self.args.eval_num_samples,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
            text_numbers=numbers,
        )

        # Per text, (B,)
        return {
            "nats": torch.tensor(estimate.sequence_nats, device="cpu"),
            "tokens": torch.tensor(estimate.sequence_tokens, device="cpu"),
        }

    def summarise(self, rows):
        return self.token_metrics(rows["nats"], rows["tokens"])


__all__ = ["MaskedDiffusionArguments", "MaskedDiffusionTrainer"]
