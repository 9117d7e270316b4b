"""Training of a denoiser's draft head, whose drafts an autoregressive model is to accept."""

from dataclasses import dataclass, field

import torch

from edlm_hf.evaluation.estimate import mean_estimate
from edlm_hf.modeling.draft_head import tokens_before
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.freezing import freeze, thaw
from edlm_hf.training.global_batch import EVALUATION
from edlm_hf.training.objectives import draft_cuts, drafts_after, masked_token_losses
from edlm_hf.training.refused_options import REFUSED_OF_ENERGIES, check_fields
from edlm_hf.training.trainer_base import EDLMTrainer, check_model
from edlm_hf.training.trainer_energy import with_error


@dataclass
class DraftArguments(EDLMTrainingArguments):
    """Options of `DraftTrainer`.

    Raises:
        ValueError: as in `EDLMTrainingArguments`, or `draft_length` is less than 2.
    """

    draft_length: int = field(
        default=4,
        metadata={"help": "n: the drafts of a round, of which the head makes all but the first."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, REFUSED_OF_ENERGIES)
        if self.draft_length < 2:
            raise ValueError(
                f"draft_length is {self.draft_length}, but it must be at least 2: the first draft of a round is the "
                "denoiser's own."
            )


class DraftTrainer(EDLMTrainer):
    """Minimises -log q_i(x_i | x_{i-1}, x_{i-2}) of the drafts of a round, with the text's own tokens.

    1. Draw a cut c, uniform over the positions of a row, and mask every token from c on.
    2. One call of the frozen denoiser gives p_theta(. | x_t) at c + 1 .. c + n - 1.
    3. The head corrects them by the two tokens before (`DraftHead`). The loss of a row is the mean
       of -log q_i(x_i | x_{i-1}, x_{i-2}) over these positions, in nats per token.

    The cut is the end of a prompt, and what follows is what `sampler="speculative"` drafts. The less
    the loss is, the more of the drafts are likely under the distribution of the text, and so under a
    good autoregressive model. Only the head is trained, averaged and changed.

    `evaluate()` gives `nll_without_head` too, the loss of a head that knows nothing, and the
    difference, `nll_change`, which is negative for a head that helps.

    The arguments are those of `EDLMTrainer`, with `DraftArguments`. The model is an
    `MDLMForMaskedLM` with a head (`add_draft_head`).

    Raises:
        ValueError: as in `EDLMTrainer`, or the model has no head, or FSDP.
    """

    arguments_class = DraftArguments
    measured = ("loss", "nll_without_head", "tokens")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The loss is divided by the items of the whole step: the Trainer must not average it again
        self.model_accepts_loss_kwargs = True

    def prepare_model(self, model, tokenizer=None):
        check_model(model)
        if getattr(model, "draft_head", None) is None:
            raise ValueError(
                f"The {type(model).__name__} has no draft head to train. Give an MDLMForMaskedLM after "
                "add_draft_head(512), such as the denoiser of a composite."
            )
        if self.args.fsdp:
            raise ValueError("A draft head is too small to be split by FSDP. Use DDP, or one process.")
        model = super().prepare_model(model, tokenizer)

        self.schedule = make_schedule(model.config.noise_schedule, **(model.config.noise_schedule_params or {}))
        self.freeze_rest(model)
        return model

    def freeze_rest(self, model):
        """Freeze all but the head."""
        freeze(model)
        thaw(model.draft_head)
        model.draft_head.requires_grad_(True)

    def items(self, labels):
        """Rows that can be cut, (B, 1) bool."""
        return draft_cuts(labels != CONTEXT_LABEL).any(-1, keepdim=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean of the losses of the rows of the step, each with one cut."""
        first = inputs["first_row"]
        rows = slice(first, first + len(inputs["input_ids"]))
        _, cut_uniforms = self.noise((), rows=rows)
        nats, _ = self.nats(model, inputs, cut_uniforms)
        loss = nats.sum() / self.items_per_process
        return (loss, {"nll": nats}) if return_outputs else loss

    def nats(
        self,
        model,
        inputs: dict,
        cut_uniforms: torch.Tensor,
        with_head: bool = True,
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """Mean nats of the drafts after a cut of every row.

        Args:
            model: the denoiser, wrapped or not.
            inputs: a batch of the collator.
            cut_uniforms: (B,) that decide the cuts.
            with_head: q is that of the head, or without it the denoiser's own.

        Returns:
            -log q_i(x_i) (B,), and the number of drafts (B,).
        """
        clean = inputs["input_ids"]  # (B, L)
        modelled = inputs["labels"] != CONTEXT_LABEL
        mask_token_id = self.model.config.mask_token_id

        # 1. x_t: masks from the cut on
        masked, drafted = drafts_after(modelled, cut_uniforms, self.args.draft_length)
        noisy = clean.masked_fill(masked, mask_token_id)
        num_masked = (masked & modelled).sum(-1)
        share = num_masked / modelled.sum(-1).clamp_min(1)

        # 2. Logits (N, V) at the drafts, of the frozen denoiser and of the head, which sees the
        #    tokens (N, 2) before them. The Trainer has put both in train mode.
        self.model.backbone.eval()
        before = None
        if with_head:
            before = tokens_before(clean, *drafted.nonzero(as_tuple=True), mask_token_id)
        logits = model(
            input_ids=noisy,
            attention_mask=inputs.get("attention_mask"),
            timesteps=self.schedule.total(self.schedule.time(share)).float(),
            logits_at=drafted,
            previous_ids=before,
        ).logits

        # 3. (B,) means
        num_drafts = drafted.sum(-1)
        losses = masked_token_losses(logits, clean, drafted, mask_token_id)
        return losses.sum(-1) / num_drafts.clamp_min(1), num_drafts

    def evaluate_rows(self, inputs, numbers):
        key = (self.args.seed, EVALUATION)
        _, cut_uniforms = self.uniforms(key, numbers, ())
        nats, num_drafts = self.nats(self.model, inputs, cut_uniforms)
        without_head, _ = self.nats(self.model, inputs, cut_uniforms, with_head=False)
        return {"loss": nats, "nll_without_head": without_head, "tokens": num_drafts}

    def summarise(self, rows):
        nats = {
            "loss": rows["loss"],
            "nll_without_head": rows["nll_without_head"],
            "nll_change": rows["loss"] - rows["nll_without_head"],
        }
        metrics = {}
        for name, values in nats.items():
            metrics.update(with_error(name, mean_estimate(values, "nats/token")))
        return metrics


__all__ = ["DraftArguments", "DraftTrainer"]
