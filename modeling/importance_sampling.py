"""What a step of generation fills in: the paper's Algorithm 1, and the likeliest tokens where nothing is drawn."""

import torch

from .generation_records import Records
from .masked_diffusion import importance_weights, resample
from .proposal import Proposal
from .reverse_chain import ReverseProcess
from .samplers import Step


class ImportanceSampling:
    """Algorithm 1 of EDLM (arXiv 2410.21357) for a step whose reveal set S is known.

    1. Draw x^1 .. x^k ~ p_theta(. | x_t).
    2. Weigh them by w_j = softmax(-E(x^j, x_t) / tau), and pick one.
    3. Reveal its tokens at S. All other masks stay, so that x_s ~ q(x_s | x_t, x_0).

    Outside the window, or without an energy, one token at every position of S is all that is drawn.
    """

    def __init__(self, process: ReverseProcess, noise, records: Records):
        self.process = process
        self.noise = noise
        self.records = records

    def __call__(self, step: Step, rows: torch.Tensor, proposal: Proposal, revealed: torch.Tensor) -> torch.LongTensor:
        """Tokens (R, L) for the rows (R,) of a step."""
        process, config = self.process, self.process.config
        if not step.weighs:
            tokens, log_probs = proposal.draw(self.noise.per_draw(rows, revealed, 1), revealed)
            self.records.drawn(rows, revealed, log_probs)
            return proposal.ids.masked_scatter(revealed, tokens)

        # 1. k candidates, jointly over all masks M (scope `sequence`) or over S (`revealed`)
        proposed = process.proposed(proposal, revealed)
        uniforms = self.noise.per_draw(rows, proposed, config.num_candidates)
        candidates = process.candidates(proposal, uniforms, revealed)

        # 2. Their energies and weights (R, k), and the one that is taken
        energies = process.energy(candidates, proposal)
        weights = importance_weights(energies, config.energy_temperature)
        chosen = resample(weights, self.noise.per_row(rows, weights.device))

        # 3. Its tokens; the caller reveals those at S
        self.records.weighed(step, energies, weights, chosen)
        taken = torch.arange(len(chosen), device=chosen.device), chosen
        self.records.drawn(rows, revealed, candidates.log_probs[taken][revealed])
        return candidates.ids[taken]


class Likeliest:
    """Without sampling: the likeliest token at every position of S."""

    def __init__(self, records: Records | None = None):
        self.records = records

    def __call__(self, step: Step, rows: torch.Tensor, proposal: Proposal, revealed: torch.Tensor) -> torch.LongTensor:
        """Tokens (R, L) for the rows (R,) of a step."""
        tokens = proposal.likeliest(revealed)
        if self.records is not None and self.records.keeps_log_probs:
            filled = proposal.ids.masked_scatter(revealed, tokens)
            self.records.drawn(rows, revealed, -proposal.nats(filled, revealed)[revealed])
        return proposal.ids.masked_scatter(revealed, tokens)
