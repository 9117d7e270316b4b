"""Training of the energy network by noise-contrastive estimation (EDLM, arXiv 2410.21357, section 4.2)."""

from dataclasses import dataclass, field

import numpy as np
import torch

from edlm_hf.evaluation import sampler_bound
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.evaluation.noising import RowNoise
from edlm_hf.modeling.energies import fill
from edlm_hf.modeling.masked_diffusion import effective_sample_size, importance_weights, make_schedule
from edlm_hf.modeling.proposal import Proposal
from edlm_hf.modeling.sampler_choice import make_sampler
from edlm_hf.modeling.samplers import MASKS, Jump, Sampler
from edlm_hf.training.arguments import EDLMTrainingArguments
from edlm_hf.training.global_batch import EVALUATION
from edlm_hf.training.objectives import (
    NCE_LOSSES,
    lattice_times,
    low_discrepancy_times,
    nce_readings,
    summarise_readings,
)
from edlm_hf.training.refused_options import REFUSED_OF_ENERGIES, check_fields
from edlm_hf.training.trainer_base import EDLMTrainer

# Planners that look at the proposal would need the denoiser along a whole path: the random order is their nearest kin.
ORDERS = {"spaced": {"score": "random"}}


@dataclass
class EnergyArguments(EDLMTrainingArguments):
    nce_loss: str = field(
        default="binary",
        metadata={
            "help": "binary: the paper's, tells data from draws. ranking: picks the data among all candidates, which "
            "tightens the bound of the sampler with k = num_negatives + 1.",
            "choices": sorted(NCE_LOSSES),
        },
    )
    num_negatives: int = field(default=1, metadata={"help": "Draws from the denoiser per text."})
    denoising_steps: int | None = field(
        default=None,
        metadata={
            "help": "T: the text gives what one step of the T-step sampler reveals, the denoiser the rest. The ranking "
            "loss is then the bound of that sampler (m = 1). Unless given, the text gives all, as in the paper."
        },
    )
    sampler: str = field(
        default="ancestral",
        metadata={
            "help": "Whose steps the energy is trained on, with denoising_steps: a sampler that sees masks alone, such "
            "as dilated. For spaced it is the random order.",
        },
    )
    eval_num_candidates: int = field(default=8, metadata={"help": "k in evaluation."})
    eval_denoising_steps: int = field(default=64, metadata={"help": "T of the sampler whose bound is evaluated."})

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, REFUSED_OF_ENERGIES)
        if self.nce_loss not in NCE_LOSSES:
            raise ValueError(f"nce_loss is {self.nce_loss!r}, but it must be one of {', '.join(sorted(NCE_LOSSES))}.")
        self.make_sampler()
        allowed = {"num_negatives": 1, "denoising_steps": 1, "eval_num_candidates": 2, "eval_denoising_steps": 1}
        for name, least in allowed.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least {least}.")

    def make_sampler(self) -> Sampler:
        """The sampler whose steps are trained on.

        Raises:
            ValueError: it is not known, or looks at more than masks.
        """
        sampler = make_sampler(self.sampler, self.denoising_steps or 1, parameters=ORDERS.get(self.sampler))
        if sampler.sees != MASKS:
            raise ValueError(
                f"sampler is {self.sampler!r}, which looks at the proposal, but training needs one that sees masks "
                "alone: ancestral, first_hitting, dilated, spaced (in random order) or remdm."
            )
        if self.sampler != "ancestral" and self.denoising_steps is None:
            raise ValueError(f"sampler is {self.sampler!r}, but denoising_steps is not given. Pass the T of its steps.")
        return sampler


class EnergyTrainer(EDLMTrainer):
    """Trains E(x_0, x_t) to tell texts from what the frozen denoiser proposes, x^ ~ p_theta(. | x_t), t ~ U(0, 1).

    The denoiser is in eval mode throughout and makes the negatives on the fly, with the sampler's own draws. The
    optimum of the binary loss is E* = -log q(x_0 | x_t) / p_theta(x_0 | x_t), with Z = 1. With
    `energy_scope="revealed"` the pairs are (x_t, x_s) with the share of revealed masks uniform on [0, 1]: candidates
    hold the mask where nothing is revealed.

    With `denoising_steps` T the pairs are those of the bound of the T-step sampler (`sampler_bound`): t = n / T, and
    the candidate of the data carries x_0 where a step reveals and a draw of the denoiser elsewhere (under
    `energy_scope="revealed"` the mask). Summed over the steps, the ranking loss less log k is then the bound with m = 1
    less that of the denoiser.

    How the energy holds its weights is the model's: `EDLMForMaskedDiffusion.from_components(denoiser,
    energy_type="nce")` starts from a copy of the denoiser, as in the paper; `energy_weights="shared"` reads the
    denoiser's frozen trunk, with low-rank updates (`energy_adapter_rank`) or through a small head alone. Of a
    `PeftModel` the active adapter alone is trained, averaged and saved (`edlm_hf.training.adapters`).

    While training it logs `nce_readings`. `evaluate()` adds, with k = `eval_num_candidates`, the effective sample size
    of the weights exp(-E) over all t and by quarters of t, and the bounds of the T-step sampler with and without the
    energy (`sampler_bound`, m = 1, and its change), T = `eval_denoising_steps`.

    Args:
        model: an `EDLMForMaskedDiffusion` with `energy_type="nce"`, or a `PeftModel` of one.
        args: `EnergyArguments`. Others as in `EDLMTrainer`.

    Raises:
        ValueError: as `EDLMTrainer`; another energy type; a shared energy with FSDP.
    """

    arguments_class = EnergyArguments
    measured = (
        *("nce_loss", "jensen_shannon", "accuracy", "energy_data", "energy_draws", "energy_draws_squared"),
        *("loss", "effective_sample_size", "t", "bound", "denoiser_bound", "tokens"),
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is that of the whole step: it is not averaged once more
        self.readings: dict[str, torch.Tensor] = {}  # sums over the rows since the last line of the log

    def prepare_model(self, model, tokenizer=None):
        model = super().prepare_model(model, tokenizer)
        energy_type = getattr(model.config, "energy_type", None)
        if energy_type != "nce":
            raise ValueError(
                f"energy_type is {energy_type!r}, but only 'nce' has a network to train. Make one with "
                "EDLMForMaskedDiffusion.from_components(denoiser, energy_type='nce')."
            )
        if self.args.fsdp and model.config.energy_weights == "shared":
            raise ValueError("FSDP would split the trunk that a shared energy reads. Use DDP, or an energy of its own.")
        self.schedule = make_schedule(model.config.noise_schedule, **(model.config.noise_schedule_params or {}))
        self.schedule.check_reaches_full_mask()
        self.sampler = self.args.make_sampler()
        model.denoiser.requires_grad_(False).eval()
        return model

    def items(self, labels):
        """Rows, of which at least one token counts."""
        return (labels != -100).any(-1, keepdim=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        shape, first = inputs["input_ids"].shape, inputs["first_row"]
        draws = (shape[1], self.args.num_negatives + self.draws_a_rest)
        rows = slice(first, first + shape[0])
        shift, within, *rest = self.noise((), shape[1:], (), draws, rows=rows)
        t = low_discrepancy_times(within, self.rows_per_step, first, shift)
        positive, negative = self.energies(model, inputs, t, *rest)

        counts = self.items(inputs["labels"])[:, 0]
        losses = NCE_LOSSES[self.args.nce_loss](positive, negative)
        loss = (losses * counts).sum() / self.items_per_process
        readings = nce_readings(*precise(positive, negative)) | {"rows": torch.ones_like(counts)}
        for name, values in readings.items():
            self.readings[name] = self.readings.get(name, 0) + (values * counts).sum()
        return (loss, {"energy_data": positive, "energy_draws": negative}) if return_outputs else loss

    @property
    def draws_a_rest(self) -> bool:
        """Whether the candidate of the data needs a draw of its own, for what the text does not give."""
        return self.args.denoising_steps is not None and self.model.config.energy_scope == "sequence"

    def energies(
        self,
        model,
        inputs: dict,
        t: torch.Tensor,
        places: torch.Tensor,
        reveal: torch.Tensor,
        draws: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies of the data (B,) and of n draws (B, n).

        Args:
            model: the composite, wrapped or not.
            inputs: a batch of the collator.
            t: (B,). places (B, L), reveal (B,), draws (B, L, n): uniforms that decide masks, reveal set and tokens;
                n + 1 draws if `draws_a_rest`.
        """
        config, clean = self.model.config, inputs["input_ids"]
        t, masked, of_text = self.pairs(t, inputs["labels"] != -100, places, reveal)
        given = {
            "input_ids": clean.masked_fill(masked, config.mask_token_id),
            "attention_mask": inputs.get("attention_mask"),
            "timesteps": self.schedule.total(t).float(),
        }

        # What the denoiser proposes, at S (scope `revealed`) or at all masks
        proposed = of_text if config.energy_scope == "revealed" else masked
        self.model.denoiser.eval()
        with torch.no_grad():
            proposal = Proposal.of_logits(given["input_ids"], proposed, model(**given).logits, config)
            tokens, _ = proposal.sample(draws[proposed])
        drawn = fill(given["input_ids"], proposed, tokens)

        # Candidate 0 carries the text where it gives it, and a draw of its own elsewhere
        rest = drawn[:, 0] if self.draws_a_rest else given["input_ids"]
        positive = torch.where(of_text, clean, rest).unsqueeze(1)
        candidates = torch.cat([positive, drawn[:, 1:] if self.draws_a_rest else drawn], dim=1)
        energies = model(candidate_ids=candidates, **given).energy
        if self.args.denoising_steps is not None:  # a step that reveals nothing costs nothing
            energies = energies * of_text.any(-1, keepdim=True)
        return energies[:, 0], energies[:, 1:]

    def pairs(
        self, t: torch.Tensor, modelled: torch.Tensor, places: torch.Tensor, reveal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The times (B,), the masks (B, L) bool and those of them (B, L) that the text gives.

        Args:
            t: (B,) even on [0, 1]. modelled: (B, L) bool, the tokens that count. places (B, L), reveal (B,): uniforms.
        """
        if self.args.denoising_steps is not None:
            return self.step_pairs(t, modelled, reveal)
        share = (1 - self.schedule.alpha(t)).unsqueeze(1)
        masked = modelled & (places < share)
        if self.model.config.energy_scope == "sequence":
            return t, masked, masked
        return t, masked, masked & (places >= reveal.unsqueeze(1) * share)

    def step_pairs(
        self, t: torch.Tensor, modelled: torch.Tensor, reveal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `pairs`: one random step of the sampler for every row."""
        found = []
        for row, point, seed in zip(modelled.cpu(), t.tolist(), reveal.tolist(), strict=True):
            noise = RowNoise([np.random.default_rng(int(seed * 2**53))])
            some = row.any()
            found.append(self.sampler.jump(row, min(point, 1 - 1e-9), noise, self.schedule) if some else Jump.none(row))
        times = torch.tensor([jump.t for jump in found], dtype=t.dtype, device=t.device)
        masked = torch.stack([jump.masked for jump in found]).to(modelled.device)
        revealed = torch.stack([jump.revealed for jump in found]).to(modelled.device)
        return times, masked, revealed

    def log(self, logs, start_time=None):
        if "loss" in logs and self.readings:
            sums = self.accelerator.reduce(torch.stack([*self.readings.values()]), reduction="sum").tolist()
            rows = sums.pop()
            names = list(self.readings)[:-1]
            logs |= summarise_readings({name: x / rows for name, x in zip(names, sums, strict=True)})
            self.readings = {}
        super().log(logs, start_time)

    def evaluate_rows(self, inputs, numbers):
        ids, k = inputs["input_ids"], self.args.eval_num_candidates
        shapes = ids.shape[1:], (), (ids.shape[1], k + self.draws_a_rest)
        shift, *rest = self.uniforms((self.args.seed, EVALUATION), numbers, *shapes)
        t = lattice_times(torch.tensor(numbers, device=shift.device), shift)
        positive, negative = self.energies(self.model, inputs, t, *rest)

        sizes = effective_sample_size(importance_weights(negative))
        loss = NCE_LOSSES[self.args.nce_loss](positive, negative[:, : self.args.num_negatives])
        found = nce_readings(*precise(positive, negative)) | {"loss": loss, "effective_sample_size": sizes, "t": t}
        options = {
            "num_steps": self.args.eval_denoising_steps,
            "num_samples": 1,
            "scored": inputs["labels"] != -100,
            "batch_size": self.args.eval_batch_size,
            "seed": self.args.seed,
            "text_numbers": numbers,
        }
        own = {"sampler": self.args.sampler, **ORDERS.get(self.args.sampler, {})}
        texts = self.model, ids, inputs.get("attention_mask")
        with_energy = sampler_bound(*texts, num_candidates=k, **own, **options)
        without = sampler_bound(*texts, num_candidates=1, **own, **options)  # on the same noise
        columns = {
            "bound": with_energy.sequence_nats,
            "denoiser_bound": without.sequence_nats,
            "tokens": with_energy.sequence_tokens,
        }
        return found | {name: torch.tensor(values, device="cpu") for name, values in columns.items()}

    def summarise(self, rows):
        names = ("nce_loss", "jensen_shannon", "accuracy", "energy_data", "energy_draws", "energy_draws_squared")
        metrics = summarise_readings({name: float(rows[name].mean()) for name in names})
        for name in ("loss", "nce_loss"):
            estimate = mean_estimate(rows[name], "nats")
            metrics |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
        metrics["effective_sample_size"] = float(rows["effective_sample_size"].mean())
        for quarter in range(4):
            chosen = (rows["t"] * 4).long().clamp_max(3) == quarter
            if chosen.any():
                name = f"effective_sample_size_t_{quarter / 4}_{quarter / 4 + 0.25}"
                metrics[name] = float(rows["effective_sample_size"][chosen].mean())
        changes = {
            "denoiser_bound": rows["denoiser_bound"],
            "sampler_bound": rows["bound"],
            "sampler_bound_change": rows["bound"] - rows["denoiser_bound"],
        }
        for name, nats in changes.items():
            estimate = ratio_estimate(nats, rows["tokens"], "nats/token")
            metrics |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
        return metrics


def precise(*energies: torch.Tensor) -> list[torch.Tensor]:
    """Energies in float64 where the device has it: their spread is a difference of squares."""
    return [x.detach() if x.device.type == "mps" else x.detach().double() for x in energies]


__all__ = ["EnergyArguments", "EnergyTrainer"]
