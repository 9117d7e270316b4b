"""What a text costs, step by step: -log of the chance with which a sampler fills in its tokens.

    -log p(x_0) <= E over paths of sum_n -log P(x_0^{S_n} | x_n)

P is the product of the marginals of the proposal. With k candidates and an energy it is bounded by Jensen's inequality,

    -log p_k(x_0^S | x_t) <= -log p_theta(x_0^S | x_t) - E log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ],

where candidate 1 carries x_0^S (the rest of M from p_theta) and candidates 2..k come from p_theta.
"""

import math
from dataclasses import dataclass, field

import torch

from edlm_hf.evaluation.noising import Noised
from edlm_hf.evaluation.scoring import total
from edlm_hf.modeling.energies import Candidates
from edlm_hf.modeling.masked_diffusion import check_energies, log_weights
from edlm_hf.modeling.proposal import Proposal
from edlm_hf.modeling.reverse_chain import ReverseProcess, chain
from edlm_hf.modeling.samplers import State, Step


@dataclass
class TextInPlace:
    """Fills every step with the text itself, and adds up what that costs: likelihood is generation with the text.

    Args:
        clean: (B, L) the text. copies: m. noise: for the candidates.
        nats: (B,) float64, the sum so far.
    """

    process: ReverseProcess
    clean: torch.LongTensor
    copies: int
    noise: object
    nats: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.nats = torch.zeros(len(self.clean), dtype=torch.float64, device="cpu")

    def __call__(self, step: Step, rows: torch.Tensor, proposal: Proposal, revealed: torch.Tensor) -> torch.LongTensor:
        text, own = self.clean[rows], step.rows
        of_text = proposal.nats(text)
        self.nats[own] += total(of_text, revealed)

        # Rows whose S is empty cost nothing
        weighed = self.process.weighs(step.t[own]) & revealed.any(-1).cpu()
        if weighed.any():
            some = weighed.to(rows.device)
            source = Source(self.noise, rows[some])
            gain = log_gain(self.process, proposal.select(some), text[some], revealed[some], source, self.copies)
            self.nats[own[weighed]] -= gain
        return text


@dataclass(frozen=True)
class Source:
    """The noise of some `rows` (R,) of a batch."""

    noise: object
    rows: torch.Tensor

    def per_draw(self, where: torch.Tensor, k: int) -> torch.Tensor:
        """k uniforms for each of the N True positions of `where` (R, L) bool: (N, k)."""
        return self.noise.per_draw(self.rows, where, k)


def walk(process: ReverseProcess, noised: Noised, copies: int) -> torch.Tensor:
    """What all steps of a path cost, drawn along the text: (B,) float64.

    Exact for a deterministic sampler without an energy: then a text has one path only. With `block_length` the tokens
    that count are filled block by block.
    """
    clean, scored = noised.clean, noised.scored
    text = TextInPlace(process, clean, copies, noised.noise)
    ids = clean.masked_fill(scored, process.model.config.mask_token_id)
    for block in blocks_of(scored, process.config.block_length):
        state = process.state(ids, block, noised.real, generated=scored)
        for _ in chain(process, state, text, noised.noise):
            pass
        ids = state.ids
    return text.nats


def blocks_of(scored: torch.Tensor, block_length: int | None) -> list[torch.Tensor]:
    """The tokens that count (B, L) bool, so many at a time from left to right."""
    if block_length is None:
        return [scored]
    number = (scored.long().cumsum(-1) - 1) // block_length
    return [scored & (number == block) for block in range(int(number.max()) + 1)]


def step_cost(process: ReverseProcess, noised: Noised, copies: int) -> torch.Tensor:
    """What one step of a path costs, averaged over its reveal set where that is known: (B,) float64."""
    proposal = propose(process, noised)
    nats = proposal.nats(noised.clean)
    value = (noised.chance * nats.cpu().double()).sum(-1)

    weighed = noised.revealed.any(-1).cpu() & process.weighs(noised.t)
    if weighed.any():
        some = weighed.to(noised.clean.device)
        source = Source(noised.noise, noised.rows[some])
        text, revealed = noised.clean[some], noised.revealed[some]
        value[weighed] -= log_gain(process, proposal.select(some), text, revealed, source, copies)
    return value


def propose(process: ReverseProcess, noised: Noised) -> Proposal:
    """p_theta(. | x_t) at all masks of a batch."""
    noisy = noised.clean.masked_fill(noised.masked, process.model.config.mask_token_id)
    state: State = process.state(noisy, noised.masked, noised.real, generated=noised.scored)
    return process.propose(state, noised.rows, noised.masked, noised.t)


def log_gain(
    process: ReverseProcess,
    proposal: Proposal,
    text: torch.LongTensor,
    revealed: torch.Tensor,
    source: Source,
    copies: int,
) -> torch.Tensor:
    """log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ] of a text (R, L) revealed at S (R, L) bool: (R,) float64."""
    k = process.config.num_candidates
    proposed = process.proposed(proposal, revealed)
    drawn = process.candidates(proposal, source.per_draw(proposed, copies * k), revealed)

    # Candidate 1 of every copy carries the text at S
    carries = revealed.unsqueeze(1)
    ids, log_probs = drawn.ids, drawn.log_probs
    of_text = -proposal.nats(text).unsqueeze(1).to(log_probs.dtype)
    ids[:, ::k] = torch.where(carries, text.unsqueeze(1), ids[:, ::k])
    log_probs[:, ::k] = torch.where(carries, of_text, log_probs[:, ::k])

    # (R, m, k), and the share of the text among the k of its copy
    energies = checked_energies(process, Candidates(ids, log_probs), proposal).view(-1, copies, k)
    log_shares = log_weights(energies, process.config.energy_temperature).log_softmax(-1)[..., 0]
    return math.log(k) + log_shares.logsumexp(-1) - math.log(copies)


def checked_energies(process: ReverseProcess, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
    """Energies (R, k) in float64 on the CPU.

    Raises:
        ValueError: an energy is NaN or -inf.
    """
    energies = process.energy(candidates, proposal).cpu().double()
    check_energies(energies)
    return energies
