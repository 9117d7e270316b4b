"""One step of the reverse chain, the paper's Algorithm 1: for the denoiser alone, for composites, for models of others.

It asks the network for `features_at` and the run for its energy. Which positions a step reveals is drawn already.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList

from .canvas_edlm import View
from .confidence import likeliest_tokens, most_confident
from .generation_config_edlm import EDLMGenerationConfig, window_times
from .masked_diffusion import (
    NoiseSchedule,
    at_least_float32,
    effective_sample_size,
    importance_weights,
    resample,
    sample_categorical,
    uniform,
)
from .reverse_chain import (
    Step,
    ancestral_steps,
    first_hitting_steps,
    most_confident_first_steps,
    most_confident_steps,
    most_masks,
)
from .vocabulary import suppress_impossible


@dataclass
class Run:
    """What one call of `generate()` does and what it records.

    Args:
        energy: (candidates (B, k, L), noisy (B, L), log p_theta per token (B, k, L), V, attention_mask (B, L),
            sigma (B,)) -> (B, k), or None where no energy acts.
        steps: how many steps the blocks before the present one had.
    """

    config: EDLMGenerationConfig
    schedule: NoiseSchedule
    processors: LogitsProcessorList
    generator: torch.Generator | None
    energy: Callable | None
    batch: int
    device: torch.device
    steps: int = 0
    energies: dict[int, torch.Tensor] = field(default_factory=dict)
    sample_sizes: dict[int, torch.Tensor] = field(default_factory=dict)
    chosen: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.window = window_times(self.config.energy_window)
        self.denoiser_calls = torch.zeros(self.batch, dtype=torch.long, device="cpu")
        self.energy_calls = torch.zeros(self.batch, dtype=torch.long, device="cpu")

    def weighs(self, t: torch.Tensor) -> torch.Tensor:
        """Which rows the energy acts on: starting times (B,) inside the window, the ends included -> bool (B,)."""
        if self.energy is None:
            return torch.zeros_like(t, dtype=torch.bool)
        return (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)

    def num_steps(self, view: View) -> int:
        """How many steps fill a block."""
        if self.config.sampler == "first_hitting":
            return most_masks(view.free)
        return self.config.max_denoising_steps

    def steps_of(self, view: View) -> Iterator[Step]:
        """The steps that reveal something in a row of a block."""
        free = view.free.cpu()
        one_by_one, num_steps = self.config.sampler == "first_hitting", self.config.max_denoising_steps
        if self.config.do_sample is False:
            if one_by_one:
                return most_confident_first_steps(free, self.schedule)
            return most_confident_steps(free, self.schedule, num_steps)
        if one_by_one:
            return first_hitting_steps(free, self.schedule, self.generator)
        return ancestral_steps(free, self.schedule, num_steps, self.generator)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Total noise for the networks: (B,) float32 on their device."""
        return self.schedule.total(t).to(self.device, torch.float32)

    def record(
        self, step: Step, rows: torch.Tensor, energies: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> None:
        """Keep the energies (R, k) of the `rows` (R,) at a step, their weights, and which candidates were taken."""
        number = self.steps + step.index
        self.energy_calls[rows.cpu()] += 1
        nan = energies.new_full((self.batch, energies.shape[1]), torch.nan)
        sizes = effective_sample_size(weights).to(energies.dtype)
        none_taken = chosen.new_full((self.batch,), -1)
        self.energies[number] = nan.index_copy(0, rows, energies)
        self.sample_sizes[number] = nan[:, 0].index_copy(0, rows, sizes)
        self.chosen[number] = none_taken.index_copy(0, rows, chosen)

    def stacked(self, records: dict[int, torch.Tensor], missing: float = torch.nan) -> torch.Tensor | None:
        """(steps, ...) of what was recorded, `missing` at the steps in between."""
        if not records:
            return None
        kept = torch.stack(list(records.values()))
        numbers = torch.tensor(list(records), device=kept.device)
        return kept.new_full((self.steps, *kept.shape[1:]), missing).index_copy(0, numbers, kept)


class DenoisingMixin:
    """x_t -> x_s for models whose `forward` gives the logits of the clean tokens."""

    def _step(self, ids: torch.Tensor, view: View, step: Step, run: Run) -> torch.Tensor:
        """x_t -> x_s for all rows. One whose reveal set is empty needs no network, even one conditioned on time."""
        if not len(step.rows):
            return ids
        run.denoiser_calls[step.rows] += 1
        if step.revealed is None:
            return self._take_most_confident(ids, view, step, run)
        weighs = run.weighs(step.t[step.rows])
        for rows, weigh in ((step.rows[weighs], True), (step.rows[~weighs], False)):
            if len(rows):
                ids = self._denoise(ids, view, step, rows, weigh, run)
        return ids

    def _denoise(self, ids: torch.Tensor, view: View, step: Step, rows: torch.Tensor, weigh: bool, run: Run):
        """The paper's Algorithm 1 for `rows`, whose reveal sets S are drawn already.

        Outside the window (or without an energy) only the tokens at S are ever looked at.
        """
        sigma, revealed = run.sigma(step.t[rows]), step.revealed[rows].to(ids.device)
        rows = rows.to(ids.device)
        noisy, real = ids[rows], view.present[rows]
        inputs = view.inputs(rows) | {"timesteps": sigma}

        if not weigh:
            tokens, _, _ = self._propose(noisy, inputs, revealed, 1, run)
            clean = noisy.masked_scatter(revealed, tokens)
        else:
            # 1. x^1..x^k ~ p_theta(.|x_t), jointly over all masks M (scope `sequence`) or over S (`revealed`)
            k, everywhere = run.config.num_candidates, real & (noisy == self.config.mask_token_id)
            proposed = revealed if run.config.energy_scope == "revealed" else everywhere
            tokens, log_probs, vocab_size = self._propose(noisy, inputs, proposed, k, run)
            candidates = fill_candidates(noisy, proposed, tokens)
            log_p_theta = fill_candidates(torch.zeros_like(noisy, dtype=log_probs.dtype), proposed, log_probs)

            # 2. w_j = exp(-E_j / tau) / sum_i exp(-E_i / tau), pick one
            energies = run.energy(candidates, noisy, log_p_theta, vocab_size, real.long(), sigma)
            weights = importance_weights(energies, run.config.energy_temperature)
            chosen = resample(weights, run.generator)
            clean = candidates[torch.arange(len(noisy), device=ids.device), chosen]
            run.record(step, rows, energies, weights, chosen)

        # 3. x_s ~ q(x_s | x_t, x_0): the tokens at S are revealed, all others stay masked
        return ids.index_copy(0, rows, torch.where(revealed, clean, noisy))

    def _propose(
        self, noisy: torch.Tensor, inputs: dict, positions: torch.Tensor, k: int, run: Run
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """k tokens at the N `positions` (B, L) from p_theta(. | x_t): ids and log-probabilities (N, k), and V."""
        features, project = self.features_at(positions, noisy, **inputs)
        uniforms = uniform((len(features), k), noisy.device, run.generator)
        tokens, log_probs = self.draw_tokens(features, project, noisy, positions.nonzero()[:, 0], uniforms, run)
        return tokens, log_probs, project(features[:0]).shape[-1]

    def draw_tokens(
        self, features: torch.Tensor, project: Callable, noisy: torch.Tensor, row_of: torch.Tensor, uniforms, run: Run
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their log-probabilities (N, k) by uniforms (N, k), for N positions of the rows `row_of` (N,)."""
        drawn = [
            sample_categorical(self.proposal_logits(project(features[part]), noisy, row_of[part], run), uniforms[part])
            for part in chunks_of(features, project)
        ]
        tokens, log_probs = zip(*drawn, strict=True)
        return torch.cat(tokens), torch.cat(log_probs)

    def proposal_logits(self, logits: torch.Tensor, noisy: torch.Tensor, row_of: torch.Tensor, run: Run):
        """Logits (N, V) of the proposal: neither the mask nor ids without a token, then the user's processors."""
        suppress_impossible(logits, self.config)
        return run.processors(noisy[row_of], logits) if run.processors else logits

    def _take_most_confident(self, ids: torch.Tensor, view: View, step: Step, run: Run) -> torch.Tensor:
        """Without sampling: the likeliest tokens at the positions where they are likeliest, ties by index."""
        rows = step.rows.to(ids.device)
        noisy = ids[rows]
        masked = view.free[rows] & (noisy == self.config.mask_token_id)
        inputs = view.inputs(rows) | {"timesteps": run.sigma(step.t[step.rows])}
        features, project = self.features_at(masked, noisy, **inputs)

        row_of = masked.nonzero()[:, 0]
        found = [
            likeliest_tokens(self.proposal_logits(project(features[part]), noisy, row_of[part], run), features.dtype)
            for part in chunks_of(features, project)
        ]
        tokens, log_odds, errors = (torch.cat(parts) for parts in zip(*found, strict=True))

        nowhere = torch.full(noisy.shape, -torch.inf, dtype=log_odds.dtype, device=ids.device)
        log_odds = nowhere.masked_scatter(masked, log_odds)
        errors = torch.zeros_like(nowhere).masked_scatter(masked, errors)
        taken = most_confident(log_odds, errors, step.counts[step.rows].to(ids.device))
        clean = noisy.masked_scatter(masked, tokens)
        return ids.index_copy(0, rows, torch.where(taken, clean, noisy))

    def features_at(
        self, positions: torch.Tensor, input_ids: torch.LongTensor, attention_mask=None, timesteps=None, **inputs
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """What the logits at `positions` (B, L) bool are made of, (N, ...), and the map from it to logits (N, V).

        Here the logits themselves. A model that can project few positions alone does so. `inputs` are further
        arguments of the denoiser.
        """
        logits = self.text_logits(input_ids, attention_mask, timesteps, **inputs)
        return logits[positions], lambda features: at_least_float32(features).clone()

    def text_logits(self, input_ids: torch.LongTensor, attention_mask=None, timesteps=None, **inputs) -> torch.Tensor:
        """Logits (B, L, V) of rows that are aligned left, in which padding takes no part."""
        return self(input_ids=input_ids, attention_mask=attention_mask, timesteps=timesteps, **inputs).logits


def chunks_of(features: torch.Tensor, project: Callable) -> Iterator[slice]:
    """Slices of the N features whose logits and float64 CDF take about 100 MB."""
    size = max(1, 2**23 // project(features[:0]).shape[-1])
    return (slice(begin, begin + size) for begin in range(0, len(features), size))


def fill_candidates(base: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """k copies of `base` (B, L) with `values` (N, k) at its N `positions` (B, L) bool: (B, k, L)."""
    filled = base.unsqueeze(-1).repeat(1, 1, values.shape[1])  # (B, L, k): row and position first, as in `values`
    filled[positions] = values
    return filled.transpose(1, 2).contiguous()


__all__ = ["DenoisingMixin", "Run", "chunks_of", "fill_candidates"]
