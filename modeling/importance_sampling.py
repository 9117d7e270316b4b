"""The tokens that a step fills in: by the paper's Algorithm 1, or the likeliest ones."""

import torch

from .generation_records import Records
from .importance_weights import importance_weights
from .masked_diffusion import resample
from .positions import Positions
from .proposal import Proposal
from .reverse_chain import ReverseProcess
from .samplers import Step


class ImportanceSampling:
    """Algorithm 1 of EDLM (arXiv 2410.21357) for a step whose reveal set S is known.

    1. Draw k candidates x^1 .. x^k ~ p_theta(. | x_t).
    2. Weigh them by w_j = softmax_j(-E(x^j, x_t) / tau), and pick one, c ~ w.
    3. Reveal x^c at S. All other masks stay, so that x_s ~ q(x_s | x_t, x_0 = x^c).

    Outside the window, or without an energy, one draw at every position of S is enough.
    """

    def __init__(self, process: ReverseProcess, noise, records: Records):
        self.process = process
        self.noise = noise
        self.records = records

    def __call__(
        self,
        step: Step,
        rows: torch.Tensor,
        proposal: Proposal,
        revealed: Positions,
    ) -> torch.LongTensor:
        """Tokens (R, L) for some `rows` (R,), of which those at S = `revealed` count."""
        process = self.process
        noise = self.noise
        records = self.records
        if not step.energy_acts:
            return self.draw_once(rows, proposal, revealed)

        # 1. x^1 .. x^k (R, k, L), jointly over all masks M, or over S (scope `revealed`)
        proposed = process.proposed(proposal, revealed)
        uniforms = noise.per_draw(rows, proposed, process.config.num_candidates)
        candidates = process.candidates(proposal, uniforms, revealed)

        # 2. E_j and w_j = softmax_j(-E_j / tau), both (R, k), and c ~ w (R,)
        energies = process.energy(candidates, proposal)
        weights = importance_weights(energies, process.config.energy_temperature)
        chosen = resample(weights, noise.per_row(rows, weights.device))

        # 3. x^c (R, L), which the chain reveals at S
        numbers = torch.arange(len(chosen), device=chosen.device)
        winner = candidates.ids[numbers, chosen]
        log_probs = candidates.log_probs[numbers, chosen]

        records.keep_candidates(step, energies, weights, chosen)
        if records.keeps_log_probs:
            records.keep_log_probs(rows, revealed.flags, log_probs)
        return winner

    def draw_once(
        self,
        rows: torch.Tensor,
        proposal: Proposal,
        revealed: Positions,
    ) -> torch.LongTensor:
        """x_0 ~ p_theta(. | x_t) at S: tokens (R, L)."""
        uniforms = self.noise.per_draw(rows, revealed, 1)
        tokens, log_probs = proposal.sample(uniforms, revealed)
        clean = revealed.put(proposal.ids, tokens[:, 0])

        # (N, 1) at their positions, (R, L)
        if self.records.keeps_log_probs:
            nothing = torch.zeros_like(clean, dtype=log_probs.dtype)
            of_tokens = revealed.put(nothing, log_probs[:, 0])
            self.records.keep_log_probs(rows, revealed.flags, of_tokens)
        return clean


class Likeliest:
    """Without sampling: the likeliest token at every position of S."""

    def __init__(self, records: Records | None = None):
        self.records = records

    def __call__(
        self,
        step: Step,
        rows: torch.Tensor,
        proposal: Proposal,
        revealed: Positions,
    ) -> torch.LongTensor:
        """Tokens (R, L) for some `rows` (R,), of which those at S = `revealed` count."""
        tokens = proposal.likeliest(revealed)
        clean = revealed.put(proposal.ids, tokens)

        if self.records is not None and self.records.keeps_log_probs:
            nats = proposal.nats(clean, revealed)
            self.records.keep_log_probs(rows, revealed.flags, -nats)
        return clean
