"""Training of a denoiser's draft head, whose drafts an autoregressive model is to accept."""

from dataclasses import dataclass, field

import torch
from torch import nn

from edlm_hf.evaluation.estimate import mean_estimate
from edlm_hf.modeling.autoregressive_target import AutoregressiveTarget
from edlm_hf.modeling.draft_head import tokens_before
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.modeling.network_facts import num_ids
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.freezing import freeze, thaw
from edlm_hf.training.global_batch import EVALUATION
from edlm_hf.training.objectives import draft_cuts, draft_losses, drafts_after, masked_token_losses
from edlm_hf.training.refused_options import REFUSED_OF_ENERGIES, check_fields
from edlm_hf.training.trainer_base import EDLMTrainer, check_model
from edlm_hf.training.trainer_energy import with_error

# Of KL(p || q) in the loss, beside the distance in total variation
KL_SHARE = 0.3


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
    """Trains the drafts of a round, by the text's own tokens or by the model that is to accept them.

    1. Draw a cut c, uniform over the positions of a row, and mask every token from c on.
    2. One call of the frozen denoiser gives p_theta(. | x_t) at c + 1 .. c + n - 1.
    3. The head corrects them by the two tokens before (`DraftHead`): q_i(. | x_{i-1}, x_{i-2}).
    4. The loss of a row is the mean over these positions of -log q_i(x_i | x_{i-1}, x_{i-2}), in
       nats. With a `target` it is the chance that the target refuses the draft, the distance of
       p_AR(. | x_<i) and q_i in total variation, plus 0.3 KL(p_AR || q_i), which has a gradient
       where q_i is far off.

    The cut is the end of a prompt, and what follows is what `sampler="speculative"` drafts. Only the
    head is trained, averaged and changed.

    `evaluate()` gives the loss, -log q_i of the text's tokens as `nll`, with a target the chance
    `refused`, each of them `..._without_head` too, and the differences `..._change`, which are
    negative for a head that helps.

    The arguments are those of `EDLMTrainer`, with `DraftArguments`. The model is an
    `MDLMForMaskedLM` with a head (`add_draft_head`).

    Args:
        target: an autoregressive model of the same vocabulary, such as the one of
            `sampler="speculative"`. It is moved to the device of the training, and not changed.

    Raises:
        ValueError: as in `EDLMTrainer`, or the model has no head, or FSDP, or the target lacks
            tokens of the denoiser.
    """

    arguments_class = DraftArguments

    def __init__(self, *args, target: nn.Module | None = None, **kwargs):
        self.target = target
        super().__init__(*args, **kwargs)
        names = ("loss", *self.measures())
        self.measured = (*names, *(f"{name}_without_head" for name in self.measures()), "tokens")
        if target is not None:
            self.reader = AutoregressiveTarget(target, self.model.config, start_token=None)
            self.reader.prepare(num_ids(self.model), text_length=1)
            self.reader.scorer.excluded_rows(num_ids(target), torch.device("cpu"))  # has all tokens
            target.requires_grad_(False).eval().to(self.args.device)

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

        parameters = model.config.noise_schedule_params or {}
        self.schedule = make_schedule(model.config.noise_schedule, **parameters)
        self.freeze_rest(model)
        return model

    def measures(self) -> tuple[str, ...]:
        """What is measured of drafts beside the loss."""
        return ("nll",) if self.target is None else ("nll", "refused")

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
        # (B,) uniforms. The uniform of the whole step is not needed.
        first = inputs["first_row"]
        rows = slice(first, first + len(inputs["input_ids"]))
        _, cut_uniforms = self.noise((), rows=rows)

        # (B,) each, 0 for a row that cannot be cut
        of_rows = self.measure(model, inputs, cut_uniforms)
        loss = of_rows["loss"].sum() / self.items_per_process
        return (loss, of_rows) if return_outputs else loss

    def measure(
        self,
        model,
        inputs: dict,
        cut_uniforms: torch.Tensor,
        with_head: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Means over the drafts after a cut of every row.

        Args:
            model: the denoiser, wrapped or not.
            inputs: a batch of the collator.
            cut_uniforms: (B,) that decide the cuts.
            with_head: q is that of the head, or without it the denoiser's own.

        Returns:
            (B,) `loss`, `nll`, with a target `refused`, and `tokens`, the number of drafts.
        """
        clean = inputs["input_ids"]  # (B, L)
        modelled = inputs["labels"] != CONTEXT_LABEL
        mask_token_id = self.model.config.mask_token_id

        # 1. x_t: masks from the cut on
        masked, drafted = drafts_after(modelled, cut_uniforms, self.args.draft_length)
        noisy = clean.masked_fill(masked, mask_token_id)

        # The time of x_t is the one at which the forward process masks this share
        num_masked = (masked & modelled).sum(-1)
        share = num_masked / modelled.sum(-1).clamp_min(1)
        t = self.schedule.time(share)

        # 2. Logits (N, V) at the drafts, of the frozen denoiser and of the head, which sees the
        #    tokens (N, 2) before them. The Trainer has put both in train mode.
        self.model.backbone.eval()
        before = None
        if with_head:
            before = tokens_before(clean, *drafted.nonzero(as_tuple=True), mask_token_id)
        logits = model(
            input_ids=noisy,
            attention_mask=inputs.get("attention_mask"),
            timesteps=self.schedule.total(t).float(),
            logits_at=drafted,
            previous_ids=before,
        ).logits

        # 3. (B,) means of values (N,)
        num_drafts = drafted.sum(-1)

        def mean(values: torch.Tensor) -> torch.Tensor:
            nothing = torch.zeros(drafted.shape, dtype=values.dtype, device=values.device)
            at_drafts = nothing.masked_scatter(drafted, values)
            return at_drafts.sum(-1) / num_drafts.clamp_min(1)

        losses = masked_token_losses(logits, clean, drafted, mask_token_id)  # (B, L)
        nll = losses.sum(-1) / num_drafts.clamp_min(1)
        of_rows = {"loss": nll, "nll": nll, "tokens": num_drafts}
        if self.target is not None:
            # log p and log q (N, V), both over the tokens that the denoiser can emit
            log_p = self.target_log_probs(clean, drafted)
            allowed = logits.float().masked_fill(log_p == -torch.inf, -torch.inf)
            log_q = allowed.log_softmax(-1)
            refused, divergence = draft_losses(log_q, log_p)
            of_rows |= {"loss": mean(refused + KL_SHARE * divergence), "refused": mean(refused)}
        return of_rows

    @torch.no_grad()
    def target_log_probs(self, clean: torch.LongTensor, drafted: torch.Tensor) -> torch.Tensor:
        """log p_AR(. | x_<i) (N, V) at the drafts (B, L), each read off the column before it."""
        rows, columns = drafted.nonzero(as_tuple=True)
        features, _ = self.reader.scorer.read(clean)
        logits = self.reader.logits(features[rows, columns - 1])
        return logits.float().log_softmax(-1)

    def evaluate_rows(self, inputs, numbers):
        key = (self.args.seed, EVALUATION)
        _, cut_uniforms = self.uniforms(key, numbers, ())

        # The same cuts with and without the head, so that the change has a small error
        of_rows = self.measure(self.model, inputs, cut_uniforms)
        without_head = self.measure(self.model, inputs, cut_uniforms, with_head=False)
        return of_rows | {f"{name}_without_head": without_head[name] for name in self.measures()}

    def summarise(self, rows):
        found = {"loss": rows["loss"]}
        for name in self.measures():
            without = rows[f"{name}_without_head"]
            found |= {
                name: rows[name],
                f"{name}_without_head": without,
                f"{name}_change": rows[name] - without,
            }

        # Means over texts, since the loss is a mean of means
        metrics = {}
        for name, values in found.items():
            unit = "share of drafts" if name.startswith("refused") else "nats/token"
            estimate = mean_estimate(values, unit)
            metrics.update(with_error(name, estimate))
        return metrics


__all__ = ["DraftArguments", "DraftTrainer"]
