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
        text = self.clean[rows]
        nats = proposal.nats(text, revealed)
        step_of = StepOfText(text, nats, revealed, step.t[step.rows], rows)
        self.nats[step.rows] += total(nats, revealed) - gain(self.process, proposal, step_of, self.noise, self.copies)
        return text


@dataclass(frozen=True)
class StepOfText:
    """What a step reveals of R texts.

    Args:
        text: (R, L) their tokens. nats: (R, L) -log p_theta of them, at S at least.
        revealed: (R, L) bool, S. t: (R,) the time at which the step starts. rows: (R,) their numbers in the batch.
    """

    text: torch.LongTensor
    nats: torch.Tensor
    revealed: torch.Tensor
    t: torch.Tensor
    rows: torch.LongTensor

    def select(self, some: torch.Tensor) -> "StepOfText":
        """The rows chosen by a bool mask (R,)."""
        return StepOfText(*(x[some.to(x.device)] for x in (self.text, self.nats, self.revealed, self.t, self.rows)))


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

    step = StepOfText(noised.clean, nats, noised.revealed, noised.t, noised.rows)
    return value - gain(process, proposal, step, noised.noise, copies)


def propose(process: ReverseProcess, noised: Noised) -> Proposal:
    """p_theta(. | x_t) at all masks of a batch."""
    noisy = noised.clean.masked_fill(noised.masked, process.model.config.mask_token_id)
    state: State = process.state(noisy, noised.masked, noised.real, generated=noised.scored)
    return process.propose(state, noised.rows, noised.masked, noised.t)


def gain(process: ReverseProcess, proposal: Proposal, step: StepOfText, noise, copies: int) -> torch.Tensor:
    """What the energy saves (R,), float64: 0 for rows whose S is empty and for those that it does not weigh."""
    saved = torch.zeros(len(step.text), dtype=torch.float64, device="cpu")
    weighed = step.revealed.any(-1).cpu() & process.weighs(step.t)
    if weighed.any():
        some = weighed.to(step.text.device)
        saved[weighed] = log_gain(process, proposal.select(some), step.select(some), noise, copies)
    return saved


def log_gain(process: ReverseProcess, proposal: Proposal, step: StepOfText, noise, copies: int) -> torch.Tensor:
    """log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ] of the texts of a step: (R,) float64."""
    k = process.config.num_candidates
    proposed = process.proposed(proposal, step.revealed)
    drawn = process.candidates(proposal, noise.per_draw(step.rows, proposed, copies * k), step.revealed)

    # Candidate 1 of every copy carries the text at S
    carries = step.revealed.unsqueeze(1)
    ids, log_probs = drawn.ids, drawn.log_probs
    of_text = -step.nats.unsqueeze(1).to(log_probs.dtype)
    ids[:, ::k] = torch.where(carries, step.text.unsqueeze(1), ids[:, ::k])
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
