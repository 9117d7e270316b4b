"""The cost of a text, step by step: -log of the probability with which a sampler fills in its tokens.

    -log p(x_0) <= E over paths of sum_n -log P(x_0^{S_n} | x_n)

P is the product of the marginals of the proposal. With k candidates and an energy it is bounded by
Jensen's inequality (docs/mathematics.md, section 6.3),

    -log p_k(x_0^S | x_t) <= -log p_theta(x_0^S | x_t) - E log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ],

where candidate 1 carries x_0^S (and the rest of M from p_theta) and candidates 2..k come from p_theta.

Shapes: B rows of a batch, R of them that act in a step, L positions, m inner copies of k candidates.
"""

import math
from dataclasses import dataclass, field

import torch

from edlm_hf.evaluation.noising import Noised
from edlm_hf.evaluation.scoring import sum_at
from edlm_hf.modeling.energies import Candidates
from edlm_hf.modeling.importance_weights import check_energies, log_weights
from edlm_hf.modeling.positions import Positions
from edlm_hf.modeling.proposal import Proposal
from edlm_hf.modeling.reverse_chain import ReverseProcess, chain
from edlm_hf.modeling.samplers import Step


@dataclass
class TextInPlace:
    """Fills every step with the text itself and adds up the cost: likelihood is generation with the text.

    Args:
        clean: (B, L) the text.
        inner_copies: m.
        noise: the source of the candidates.
        nats: (B,) float64, the cost so far.
    """

    process: ReverseProcess
    clean: torch.LongTensor
    inner_copies: int
    noise: object
    nats: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.nats = torch.zeros(len(self.clean), dtype=torch.float64, device="cpu")

    def __call__(self, step: Step, rows: torch.Tensor, proposal: Proposal, revealed: Positions) -> torch.LongTensor:
        """The text (R, L) of the rows (R,) of a step."""
        # -log p_theta of the text at S, (R, L)
        text = self.clean[rows]
        nats = proposal.nats(text, revealed)
        step_text = StepText(
            text=text,
            nats=nats,
            revealed=revealed.flags,
            t=step.t[step.rows],
            rows=step.rows,
        )

        # -log P(x_0^S | x_n), (R,): the nats of the denoiser, less those that the energy saves
        gain = energy_gain(self.process, proposal, step_text, self.noise, self.inner_copies)
        cost = sum_at(revealed.flags, nats) - gain
        self.nats[step.rows] += cost
        return text


@dataclass(frozen=True)
class StepText:
    """The text of R rows in one step, and the part of it that the step reveals.

    Args:
        text: (R, L) token ids.
        nats: (R, L) -log p_theta of them, at S at least.
        revealed: (R, L) bool, S.
        t: (R,) the time at which the step starts.
        rows: (R,) the indices of the rows in the batch, on the CPU.
    """

    text: torch.LongTensor
    nats: torch.Tensor
    revealed: torch.Tensor
    t: torch.Tensor
    rows: torch.LongTensor

    def select(self, chosen: torch.Tensor) -> "StepText":
        """The rows chosen by a bool mask (R,)."""
        # The tensors are on two devices: the numbers of the rows stay on the CPU
        tensors = (self.text, self.nats, self.revealed, self.t, self.rows)
        selected = [tensor[chosen.to(tensor.device)] for tensor in tensors]
        return StepText(*selected)


def path_cost(process: ReverseProcess, noised: Noised, inner_copies: int) -> torch.Tensor:
    """The cost of all steps of a path that is drawn along the text: (B,) float64.

    Exact for a deterministic sampler without an energy, because a text then has one path only. With
    `block_length` the tokens that count are filled block by block.
    """
    scored = noised.scored
    text_in_place = TextInPlace(process, noised.clean, inner_copies, noised.noise)

    # Every block begins with the text of the blocks before it
    ids = noised.clean.masked_fill(scored, process.model.config.mask_token_id)
    for block in blocks_of(scored, process.config.block_length):
        state = process.state(ids, block, noised.real, generated=scored)

        # The steps of the chain put their costs into `text_in_place`
        for _ in chain(process, state, text_in_place, noised.noise):
            pass
        ids = state.ids
    return text_in_place.nats


def blocks_of(scored: torch.Tensor, block_length: int | None) -> list[torch.Tensor]:
    """Cut the tokens that count (B, L) bool into blocks of `block_length`, from left to right."""
    if block_length is None:
        return [scored]

    # The index of a token among those that count, and the block that it falls in: (B, L) both
    indices = scored.long().cumsum(-1) - 1
    block_of = indices // block_length
    num_blocks = int(block_of.max()) + 1
    return [scored & (block_of == block) for block in range(num_blocks)]


def step_cost(process: ReverseProcess, noised: Noised, inner_copies: int) -> torch.Tensor:
    """The cost of one step of a path, averaged over S where its distribution is known: (B,) float64."""
    proposal = propose(process, noised)

    # E_S sum_{i in S} -log p_theta^i = sum_i P(i in S) (-log p_theta^i), (B,)
    nats = proposal.nats(noised.clean)
    expected_nats = noised.chance * nats.cpu().double()
    cost = expected_nats.sum(-1)

    # The gain depends on all of S, so that it is taken at the S that was drawn
    step_text = StepText(
        text=noised.clean,
        nats=nats,
        revealed=noised.revealed,
        t=noised.t,
        rows=noised.rows,
    )
    return cost - energy_gain(process, proposal, step_text, noised.noise, inner_copies)


def propose(process: ReverseProcess, noised: Noised) -> Proposal:
    """p_theta(. | x_t) at all masks of a batch."""
    # x_t, (B, L)
    mask_token_id = process.model.config.mask_token_id
    noisy = noised.clean.masked_fill(noised.masked, mask_token_id)

    state = process.state(noisy, noised.masked, noised.real, generated=noised.scored)
    positions = Positions(noised.masked)
    return process.propose(state, noised.rows, positions, noised.t)


def energy_gain(
    process: ReverseProcess,
    proposal: Proposal,
    step_text: StepText,
    noise,
    inner_copies: int,
) -> torch.Tensor:
    """The nats that the energy saves, (R,) float64: 0 for rows on which it does not act, or with an empty S."""
    gain = torch.zeros(len(step_text.text), dtype=torch.float64, device="cpu")

    # The rows that reveal something, at a time inside the energy window: (R,)
    reveals = step_text.revealed.any(-1).cpu()
    acts = reveals & process.energy_acts(step_text.t)
    if not acts.any():
        return gain

    # Only these rows cost calls of the energy
    proposal = proposal.select(acts.to(step_text.text.device))
    step_text = step_text.select(acts)
    gain[acts] = log_gain(process, proposal, step_text, noise, inner_copies)
    return gain


def log_gain(
    process: ReverseProcess,
    proposal: Proposal,
    step_text: StepText,
    noise,
    inner_copies: int,
) -> torch.Tensor:
    """log mean_{a=1..m} [ k exp(-E_1) / sum_j exp(-E_j) ], estimated with one draw: (R,) float64."""
    # m copies of k candidates from p_theta, side by side: (R, m k, L)
    k = process.config.num_candidates
    proposed = process.proposed(proposal, Positions(step_text.revealed))
    uniforms = noise.per_draw(step_text.rows, proposed, inner_copies * k)
    candidates = process.candidates(proposal, uniforms, proposed)

    # Candidate 1 of every copy carries the text at S
    ids, log_probs = candidates.ids, candidates.log_probs
    revealed = step_text.revealed.unsqueeze(1)  # (R, 1, L)
    text = step_text.text.unsqueeze(1)
    text_log_probs = -step_text.nats.unsqueeze(1).to(log_probs.dtype)
    ids[:, ::k] = torch.where(revealed, text, ids[:, ::k])
    log_probs[:, ::k] = torch.where(revealed, text_log_probs, log_probs[:, ::k])

    # -E / tau, (R, m, k)
    energies = checked_energies(process, Candidates(ids, log_probs), proposal)
    energies = energies.view(-1, inner_copies, k)
    weights = log_weights(energies, process.config.energy_temperature)

    # The share of candidate 1 in its copy, exp(-E_1) / sum_j exp(-E_j): (R, m)
    log_shares = weights.log_softmax(-1)[..., 0]

    # log [ (k / m) sum_a share_a ], (R,)
    log_sum = log_shares.logsumexp(-1)
    return math.log(k) + log_sum - math.log(inner_copies)


def checked_energies(process: ReverseProcess, candidates: Candidates, proposal: Proposal) -> torch.Tensor:
    """Energies (R, k) in float64 on the CPU.

    Raises:
        ValueError: an energy is NaN or -inf.
    """
    energies = process.energy(candidates, proposal).cpu().double()
    check_energies(energies)
    return energies
