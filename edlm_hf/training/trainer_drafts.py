"""Training of a denoiser's draft head, whose drafts an autoregressive model is to accept."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from edlm_hf.evaluation.estimate import mean_estimate
from edlm_hf.modeling.autoregressive_target import AutoregressiveTarget
from edlm_hf.modeling.causal_log_probs import hidden_size_of
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


class Round(NamedTuple):
    """A cut of every row, and what is drafted after it: (B, L) bool each.

    Args:
        modelled: the tokens that count.
        masked: all from the cut on.
        first: the first draft, at the cut, if it learns. Nothing otherwise.
        later: the drafts after the first one.
        states: (B, L, G) of the target, which has read the text, None without one.
    """

    modelled: torch.Tensor
    masked: torch.Tensor
    first: torch.Tensor
    later: torch.Tensor
    states: torch.Tensor | None

    @property
    def drafted(self) -> torch.Tensor:
        """All drafts."""
        return self.first | self.later

    def states_before(self) -> torch.Tensor:
        """The states (B, L, G) by which the target gave the tokens before, two columns before each place."""
        return self.states.roll(2, dims=1)


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

    A model whose `first_draft` reads the states of the target (`add_first_draft(target_dim)`) learns
    that draft too. To the loss of a row come the one at the cut c, and the one of C alone, which needs
    no denoiser, as a mean over the positions before the cut (`FirstDraft`).

    `evaluate()` gives the loss, -log q_i of the text's tokens as `nll`, with a target the chance
    `refused`, and with a `first_draft` that of the first one, `first_refused`. Each of them is there
    `..._without_head` too, and the differences `..._change`, which are negative for a head that helps.

    The arguments are those of `EDLMTrainer`, with `DraftArguments`. The model is an
    `MDLMForMaskedLM` with a head (`add_draft_head`).

    Args:
        target: an autoregressive model of the same vocabulary, such as the one of
            `sampler="speculative"`. It is moved to the device of the training, and not changed.

    Raises:
        ValueError: as in `EDLMTrainer`, or the model has no head, or FSDP, or the target lacks
            tokens of the denoiser, or its states have another size than those that the
            `first_draft` reads.
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
        self.learns_first = reads_states(model, self.target)
        self.freeze_rest(model)
        return model

    def measures(self) -> tuple[str, ...]:
        """What is measured of drafts beside the loss."""
        of_target = () if self.target is None else ("refused",)
        return "nll", *of_target, *(("first_refused",) if self.learns_first else ())

    def freeze_rest(self, model):
        """Freeze all but the head, and the one of the first draft where it reads the target."""
        freeze(model)
        thaw(model.draft_head)
        model.draft_head.requires_grad_(True)
        if model.first_draft is not None:
            thaw(model.first_draft)
            model.first_draft.requires_grad_(self.learns_first)

    def items(self, labels):
        """Rows that can be cut, (B, 1) bool."""
        return draft_cuts(self.modelled(labels)).any(-1, keepdim=True)

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
            with_head: q is that of the heads, or without them the denoiser's own.

        Returns:
            (B,) `loss`, `nll`, with a target `refused`, of a first draft that learns `first_refused`,
            and `tokens`, the number of drafts after the first one.
        """
        drawn = self.draw_round(inputs, cut_uniforms)
        return self.measure_round(model, inputs, drawn, with_head)

    def draw_round(self, inputs: dict, cut_uniforms: torch.Tensor) -> Round:
        """The cuts (B,) that the uniforms decide, and what the target has read."""
        modelled = self.modelled(inputs["labels"])
        masked, later = drafts_after(modelled, cut_uniforms, self.args.draft_length)
        first = masked & (masked.cumsum(-1) == 1) & self.learns_first
        states = None if self.target is None else self.target_states(inputs["input_ids"])
        return Round(modelled, masked, first, later, states)

    def measure_round(self, model, inputs: dict, drawn: Round, with_head: bool) -> dict[str, torch.Tensor]:
        """`measure` after given cuts."""
        clean = inputs["input_ids"]  # (B, L)
        logits = self.logits(model, inputs, drawn, with_head)  # (N, V)

        # (B,) means of values (B, L) over the drafts after the first one
        num_later = drawn.later.sum(-1)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return values.masked_fill(~drawn.later, 0).sum(-1) / num_later.clamp_min(1)

        nll = mean(masked_token_losses(logits, clean, drawn.drafted, self.model.config.mask_token_id))
        of_rows = {"loss": nll, "nll": nll, "tokens": num_later}
        if self.target is None:
            return of_rows

        # (B, L): what the target refuses, and for a first draft that learns what it refuses of it
        refused, losses = self.losses(logits, drawn.states, drawn.drafted)
        of_rows |= {"loss": mean(losses), "refused": mean(refused)}
        if self.learns_first:
            of_rows["first_refused"] = refused.masked_fill(~drawn.first, 0).sum(-1)
            of_rows["loss"] += losses.masked_fill(~drawn.first, 0).sum(-1)
        if self.learns_first and with_head:
            of_rows["loss"] += self.losses_of_target(clean, drawn)
        return of_rows

    def modelled(self, labels: torch.LongTensor) -> torch.Tensor:
        """The tokens (B, L) bool that count. A first draft reads the target two columns before it."""
        modelled = labels != CONTEXT_LABEL
        if self.learns_first:
            modelled[:, :2] = False
        return modelled

    def logits(self, model, inputs: dict, drawn: Round, with_head: bool) -> torch.Tensor:
        """Logits (N, V) at the drafts, of the frozen denoiser and of the heads."""
        # The time of x_t is the one at which the forward process masks this share
        num_masked = (drawn.masked & drawn.modelled).sum(-1)
        share = num_masked / drawn.modelled.sum(-1).clamp_min(1)
        t = self.schedule.time(share)

        # What the heads read: the tokens (N, 2) before the drafts, and the target's states (B, G)
        # before the first one
        clean = inputs["input_ids"]
        mask_token_id = self.model.config.mask_token_id
        heads_read = {}
        if with_head:
            places = drawn.drafted.nonzero(as_tuple=True)
            heads_read["previous_ids"] = tokens_before(clean, *places, mask_token_id)
        if with_head and self.learns_first:
            elsewhere = ~drawn.first.unsqueeze(-1)
            heads_read["target_hidden"] = drawn.states_before().masked_fill(elsewhere, 0).sum(1)

        # The Trainer has put both in train mode
        self.model.backbone.eval()
        return model(
            input_ids=clean.masked_fill(drawn.masked, mask_token_id),
            attention_mask=inputs.get("attention_mask"),
            timesteps=self.schedule.total(t).float(),
            logits_at=drawn.drafted,
            **heads_read,
        ).logits

    def losses(
        self,
        logits: torch.Tensor,
        states: torch.Tensor,
        drafted: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chances that the target refuses drafts, and their losses: (B, L) each, 0 elsewhere.

        Args:
            logits: (N, V) of q at the drafts (B, L) bool.
            states: (B, L, G) of `target_states`.
        """
        # log p and log q (N, V), both over the tokens that the denoiser can emit. The target gives
        # a token in the column before it.
        rows, columns = drafted.nonzero(as_tuple=True)
        with torch.no_grad():
            log_p = self.reader.logits(states[rows, columns - 1]).float().log_softmax(-1)
        allowed = logits.float().masked_fill(log_p == -torch.inf, -torch.inf)
        log_q = allowed.log_softmax(-1)

        refused, divergence = draft_losses(log_q, log_p)
        losses = refused + KL_SHARE * divergence
        nothing = torch.zeros(drafted.shape, dtype=losses.dtype, device=losses.device)
        return nothing.masked_scatter(drafted, refused), nothing.masked_scatter(drafted, losses)

    def losses_of_target(self, clean: torch.LongTensor, drawn: Round) -> torch.Tensor:
        """(B,) means of the loss of C alone, the expert that needs no denoiser, over the places before the cut."""
        model = self.model
        drafted = drawn.modelled & ~drawn.masked
        before = tokens_before(clean, *drafted.nonzero(as_tuple=True), model.config.mask_token_id)

        # C(f, x_{i-1}, x_{i-2}), and its logits (N, V)
        with self.accelerator.autocast():
            of_target = model.first_draft.of_target(drawn.states_before()[drafted], model.embeddings_of(before))
            logits = model.get_output_embeddings()(of_target)

        _, losses = self.losses(logits, drawn.states, drafted)
        return losses.sum(-1) / drafted.sum(-1).clamp_min(1)

    @torch.no_grad()
    def target_states(self, clean: torch.LongTensor) -> torch.Tensor:
        """The target's last hidden states (B, L, G), or its logits where it has no trunk of ours."""
        with self.accelerator.autocast():
            states, _ = self.reader.scorer.read(clean)
        return states

    def evaluate_rows(self, inputs, numbers):
        key = (self.args.seed, EVALUATION)
        _, cut_uniforms = self.uniforms(key, numbers, ())

        # The same cuts with and without the head, so that the change has a small error
        drawn = self.draw_round(inputs, cut_uniforms)
        of_rows = self.measure_round(self.model, inputs, drawn, with_head=True)
        without_head = self.measure_round(self.model, inputs, drawn, with_head=False)
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
            unit = "share of drafts" if "refused" in name else "nats/token"
            estimate = mean_estimate(values, unit)
            metrics.update(with_error(name, estimate))
        return metrics


def reads_states(model: nn.Module, target: nn.Module | None) -> bool:
    """Whether the first draft of a denoiser reads this target. Without states to read it stays as it is.

    Raises:
        ValueError: it reads states of another size.
    """
    size = hidden_size_of(target)
    if size is None or model.first_draft is None:
        return False
    target_dim = model.config.draft_target_dim
    if size != target_dim:
        raise ValueError(
            f"The first draft of the denoiser reads states of {target_dim} numbers, but the target, a "
            f"{type(target).__name__}, has states of {size}. Give the denoiser a new one: add_first_draft({size})."
        )
    return True


__all__ = ["DraftArguments", "DraftTrainer"]
