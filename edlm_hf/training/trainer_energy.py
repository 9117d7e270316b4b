"""Training of the energy by noise-contrastive estimation (EDLM, arXiv 2410.21357, section 4.2)."""

import torch

from edlm_hf.evaluation import sampler_bound
from edlm_hf.evaluation.estimate import Estimate, mean_estimate, ratio_estimate
from edlm_hf.modeling.devices import double_where_possible
from edlm_hf.modeling.energies import fill
from edlm_hf.modeling.importance_weights import effective_sample_size, importance_weights
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.modeling.positions import Positions
from edlm_hf.modeling.proposal import Proposal
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.energy_arguments import RANDOM_ORDER, EnergyArguments
from edlm_hf.training.freezing import freeze
from edlm_hf.training.global_batch import EVALUATION
from edlm_hf.training.objectives import (
    NCE_LOSSES,
    lattice_times,
    low_discrepancy_times,
    nce_readings,
    summarise_readings,
)
from edlm_hf.training.trainer_base import EDLMTrainer
from edlm_hf.training.training_pairs import Pairs, forward_pairs, step_pairs

READINGS = (
    "nce_loss",
    "jensen_shannon",
    "accuracy",
    "energy_data",
    "energy_draws",
    "energy_draws_squared",
)


class EnergyTrainer(EDLMTrainer):
    """Trains E(x_0, x_t) to tell texts from proposals x^ ~ p_theta(. | x_t), t ~ U(0, 1).

    1. Mask a text: x_t ~ q(x_t | x_0).
    2. Draw n negatives from the frozen denoiser, which stays in eval mode, by the sampler's draws.
    3. Minimise the binary loss of E(x_0) and E(x^j), or the ranking loss.

    The optimum of the binary loss is E* = -log q(x_0 | x_t) / p_theta(x_0 | x_t), with Z = 1. With
    `energy_scope="revealed"` the pairs are (x_t, x_s) with the share of revealed masks uniform on
    [0, 1]: candidates hold the mask where nothing is revealed.

    With `max_denoising_steps` T the pairs are those of the bound of the T-step sampler
    (`sampler_bound`): t = n / T, and the candidate of the data carries x_0 where a step reveals and
    a draw of the denoiser elsewhere (under `energy_scope="revealed"` the mask). Summed over the
    steps, the ranking loss less log k is then the bound with m = 1 less the denoiser's bound.

    The model says how the energy holds its weights. `EDLMForMaskedDiffusion.from_components(
    denoiser, energy_type="nce")` starts from a copy of the denoiser, as in the paper.
    `energy_weights="shared"` reads the denoiser's frozen trunk, with low-rank updates
    (`energy_adapter_rank`) or through a small head alone. Of a `PeftModel` the active adapter alone
    is trained, averaged and saved (`edlm_hf.energy_adapters`).

    While training it logs `nce_readings`. `evaluate()` adds, with k = `eval_num_candidates`, the
    effective sample size of the weights exp(-E) over all t and by quarters of t. It also adds the
    bounds of the T-step sampler with and without the energy (`sampler_bound`, m = 1, and its
    change), T = `eval_max_denoising_steps`.

    The arguments are those of `EDLMTrainer`, with `EnergyArguments`. The model is an
    `EDLMForMaskedDiffusion` with `energy_type="nce"`, or a `PeftModel` of one.

    Raises:
        ValueError: as in `EDLMTrainer`, or another energy type, or a shared energy with FSDP.
    """

    arguments_class = EnergyArguments
    measured = (
        *READINGS,
        "loss",
        "effective_sample_size",
        "t",
        "bound",
        "denoiser_bound",
        "tokens",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The loss is divided by the items of the whole step: the Trainer must not average it again
        self.model_accepts_loss_kwargs = True
        # Sums over the rows since the last line of the log
        self.readings: dict[str, torch.Tensor] = {}

    def prepare_model(self, model, tokenizer=None):
        model = super().prepare_model(model, tokenizer)
        config = model.config
        energy_type = getattr(config, "energy_type", None)
        if energy_type != "nce":
            raise ValueError(
                f"energy_type is {energy_type!r}, but only 'nce' has a network to train. Make one "
                "with EDLMForMaskedDiffusion.from_components(denoiser, energy_type='nce')."
            )
        if self.args.fsdp and config.energy_weights == "shared":
            problem = "FSDP would split the trunk that a shared energy reads."
            raise ValueError(f"{problem} Use DDP, or an energy of its own.")

        self.schedule = make_schedule(config.noise_schedule, **(config.noise_schedule_params or {}))
        self.schedule.check_reaches_full_mask()
        self.sampler = self.args.make_sampler()
        self.freeze_rest(model)
        model.denoiser.eval()
        return model

    def freeze_rest(self, model):
        """Freeze the denoiser."""
        freeze(model.denoiser)

    def items(self, labels):
        """Rows in which a token counts, (B, 1) bool."""
        return (labels != CONTEXT_LABEL).any(-1, keepdim=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The NCE loss at one time per row, divided by the rows of the step."""
        batch_size, length = inputs["input_ids"].shape
        first = inputs["first_row"]

        # Uniforms: one for the step, (B,) for the times, and three kinds for `energies`
        shapes = self.shapes_of_uniforms(length, self.args.num_negatives)
        rows = slice(first, first + batch_size)
        shift, time_uniforms, *uniforms = self.noise((), *shapes, rows=rows)
        t = low_discrepancy_times(time_uniforms, self.rows_per_step, first, shift)

        # E(x_0) (B,) and E(x^j) (B, n)
        positive, negative = self.energies(model, inputs, t, *uniforms)

        # A row in which nothing counts has no masks, and adds nothing
        counts = self.items(inputs["labels"])[:, 0]
        loss_function = NCE_LOSSES[self.args.nce_loss]
        losses = loss_function(positive, negative)
        loss = (losses * counts).sum() / self.items_per_process

        self.add_readings(positive, negative, counts)
        outputs = {"energy_data": positive, "energy_draws": negative}
        return (loss, outputs) if return_outputs else loss

    @property
    def data_needs_draw(self) -> bool:
        """Whether the text fills only a part of its candidate, and the denoiser draws the rest."""
        is_whole = self.model.config.energy_scope == "sequence"
        return is_whole and self.args.max_denoising_steps is not None

    def shapes_of_uniforms(self, length: int, num_negatives: int) -> tuple[tuple[int, ...], ...]:
        """The shapes for one row of the uniforms that `energies` takes."""
        num_draws = num_negatives + self.data_needs_draw
        return (length,), (), (length, num_draws)

    def energies(
        self,
        model,
        inputs: dict,
        t: torch.Tensor,
        mask_uniforms: torch.Tensor,
        reveal_uniforms: torch.Tensor,
        token_uniforms: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make candidates for every row of a batch, and compute their energies.

        Args:
            model: the composite, wrapped or not.
            inputs: a batch of the collator.
            t: (B,) times.
            mask_uniforms: (B, L) uniforms that decide the masks.
            reveal_uniforms: (B,) uniforms that decide the reveal set.
            token_uniforms: (B, L, n) uniforms that decide the tokens, n + 1 if `data_needs_draw`.

        Returns:
            (B,) of the data and (B, n) of draws.
        """
        config = self.model.config
        clean = inputs["input_ids"]
        modelled = inputs["labels"] != CONTEXT_LABEL

        # 1. x_t
        t, masked, from_text = self.pairs(t, modelled, mask_uniforms, reveal_uniforms)
        noisy_ids = clean.masked_fill(masked, config.mask_token_id)
        noisy = {
            "input_ids": noisy_ids,
            "attention_mask": inputs.get("attention_mask"),
            "timesteps": self.schedule.total(t).float(),
        }

        # 2. Draws of the denoiser at S (scope `revealed`) or at all masks, (B, n, L)
        proposed = from_text if config.energy_scope == "revealed" else masked
        drawn = self.draw_candidates(model, noisy, proposed, token_uniforms)

        # 3. The data, (B, 1, L): x_0 where the text fills it, elsewhere a draw or the mask
        rest = noisy_ids
        if self.data_needs_draw:
            rest = drawn[:, 0]
            drawn = drawn[:, 1:]
        data = torch.where(from_text, clean, rest).unsqueeze(1)

        # 4. E of all candidates, (B, 1 + n). A step that reveals nothing costs nothing.
        candidates = torch.cat([data, drawn], dim=1)
        energies = model(candidate_ids=candidates, **noisy).energy
        if self.args.max_denoising_steps is not None:
            energies = energies * from_text.any(-1, keepdim=True)
        return energies[:, 0], energies[:, 1:]

    def pairs(
        self,
        t: torch.Tensor,
        modelled: torch.Tensor,
        mask_uniforms: torch.Tensor,
        reveal_uniforms: torch.Tensor,
    ) -> Pairs:
        """Mask texts by the forward process, or by a step of the sampler (`max_denoising_steps`)."""
        if self.args.max_denoising_steps is not None:
            return step_pairs(self.sampler, self.schedule, t, modelled, seeds=reveal_uniforms)
        if self.model.config.energy_scope == "revealed":
            return forward_pairs(self.schedule, t, modelled, mask_uniforms, reveal_uniforms)
        return forward_pairs(self.schedule, t, modelled, mask_uniforms)

    @torch.no_grad()
    def draw_candidates(
        self,
        model,
        noisy: dict,
        proposed: torch.Tensor,
        token_uniforms: torch.Tensor,
    ) -> torch.LongTensor:
        """Fill the positions `proposed` (B, L) bool of x_t from the frozen denoiser: (B, n, L)."""
        # The Trainer has put the whole model in train mode, with dropout
        self.model.denoiser.eval()
        config = self.model.config
        noisy_ids = noisy["input_ids"]

        # p_theta(. | x_t) at the positions, from logits (B, L, V)
        at = Positions(proposed)
        logits = model(**noisy).logits
        proposal = Proposal.of_logits(noisy_ids, at, logits, config)

        # (N, n) at the N positions
        tokens, _ = proposal.sample(at.take(token_uniforms))
        return fill(noisy_ids, at, tokens)

    def add_readings(
        self,
        positive: torch.Tensor,
        negative: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        """Add the readings of the rows that count, (B,) bool, to the sums since the last log."""
        readings = nce_readings(*precise(positive, negative))
        readings["rows"] = torch.ones_like(counts)

        # Sums stay on the device, so that no step waits for them
        for name, values in readings.items():
            total = (values * counts).sum()
            self.readings[name] = self.readings.get(name, 0) + total

    def log(self, logs, start_time=None):
        """As usual, with the averages of the readings over all processes."""
        if "loss" in logs and self.readings:
            # The number of rows comes last
            sums = torch.stack([*self.readings.values()])
            sums = self.accelerator.reduce(sums, reduction="sum")
            *totals, rows = sums.tolist()

            averages = {name: total / rows for name, total in zip(READINGS, totals, strict=True)}
            logs |= summarise_readings(averages)
            self.readings = {}
        super().log(logs, start_time)

    def evaluate_rows(self, inputs, numbers):
        # 1. Energies with k draws, at times that are a lattice over the rows
        k = self.args.eval_num_candidates
        length = inputs["input_ids"].shape[1]
        shapes = self.shapes_of_uniforms(length, k)
        key = (self.args.seed, EVALUATION)
        shift, *uniforms = self.uniforms(key, numbers, *shapes)
        t = lattice_times(torch.tensor(numbers, device=shift.device), shift)
        positive, negative = self.energies(self.model, inputs, t, *uniforms)

        # 2. The loss with as many negatives as in training, and the weights of the k draws
        trained_on = negative[:, : self.args.num_negatives]
        loss_function = NCE_LOSSES[self.args.nce_loss]
        weights = importance_weights(negative)  # (B, k)
        rows = nce_readings(*precise(positive, negative))
        rows["loss"] = loss_function(positive, trained_on)
        rows["effective_sample_size"] = effective_sample_size(weights)
        rows["t"] = t

        # 3. Bounds of the sampler with and without the energy, in nats per text. They are on the
        #    same noise, so that their difference has a small error.
        with_energy = self.bound(inputs, numbers, num_candidates=k)
        without = self.bound(inputs, numbers, num_candidates=1)
        rows["bound"] = torch.tensor(with_energy.sequence_nats, device="cpu")
        rows["denoiser_bound"] = torch.tensor(without.sequence_nats, device="cpu")
        rows["tokens"] = torch.tensor(with_energy.sequence_tokens, device="cpu")
        return rows

    def bound(self, inputs: dict, numbers: list[int], num_candidates: int):
        """`sampler_bound` of a batch at one step per row, for the sampler that is trained on."""
        return sampler_bound(
            self.model,
            inputs["input_ids"],
            inputs.get("attention_mask"),
            num_steps=self.args.eval_max_denoising_steps,
            num_candidates=num_candidates,
            scored=inputs["labels"] != CONTEXT_LABEL,
            text_numbers=numbers,
            num_samples=1,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
            sampler=self.args.sampler,
            **RANDOM_ORDER.get(self.args.sampler, {}),
        )

    def summarise(self, rows):
        # 1. The readings of training, and the losses with their errors
        averages = {name: float(rows[name].mean()) for name in READINGS}
        metrics = summarise_readings(averages)
        for name in ("loss", "nce_loss"):
            metrics |= with_error(name, mean_estimate(rows[name], "nats"))

        # 2. Effective sample sizes, over all t and by quarters of t (t = 1 is in the last one)
        sizes = rows["effective_sample_size"]
        metrics["effective_sample_size"] = float(sizes.mean())
        quarters = (rows["t"] * 4).long().clamp_max(3)
        for quarter in range(4):
            chosen = quarters == quarter
            if chosen.any():
                name = f"effective_sample_size_t_{quarter / 4}_{quarter / 4 + 0.25}"
                metrics[name] = float(sizes[chosen].mean())

        # 3. Bounds in nats per token
        bounds = {
            "denoiser_bound": rows["denoiser_bound"],
            "sampler_bound": rows["bound"],
            "sampler_bound_change": rows["bound"] - rows["denoiser_bound"],
        }
        for name, nats in bounds.items():
            estimate = ratio_estimate(nats, rows["tokens"], "nats/token")
            metrics |= with_error(name, estimate)
        return metrics


def with_error(name: str, estimate: Estimate) -> dict[str, float]:
    """A metric and its standard error, by their names."""
    return {name: estimate.value, f"{name}_standard_error": estimate.standard_error}


def precise(*energies: torch.Tensor) -> list[torch.Tensor]:
    """Energies in float64 where the device has it: their spread is a difference of squares."""
    return [double_where_possible(x.detach()) for x in energies]


__all__ = ["EnergyTrainer"]
