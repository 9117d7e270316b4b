"""The reverse chain x_1 -> x_0, written once for generation and for likelihoods.

    for t from 1 to 0:
        S   ~ q(S | x_t)              where: the sampler
        x_0 ~ p(x_0 | x_t)            what: `choose`
        x_s = x_0 at S, x_t elsewhere

For generation `choose` draws from the proposal, with an energy by Algorithm 1 of the paper
(importance_sampling.py). For a likelihood it takes the text itself. `ReverseProcess` knows the
networks.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList

from .chain_state import State
from .devices import send
from .energies import Candidates, Energy
from .generation_config_edlm import EDLMGenerationConfig, window_times
from .masked_diffusion import NoiseSchedule
from .positions import Positions, read_together
from .proposal import Proposal, ProposingMixin
from .samplers import TOKENS, Sampler, Step

# How far equal times may lie apart
ROUNDING = 1e-9

# (step, rows (R,), proposal, S) -> tokens (R, L), of which those at S count
Choose = Callable[[Step, torch.Tensor, Proposal, Positions], torch.LongTensor]


def chain(process: "ReverseProcess", state: State, choose: Choose, noise) -> Iterator[Step]:
    """Run the reverse chain on `state`, in place, and yield every step when it is done."""
    for number, step in enumerate(process.sampler.steps(state, noise)):
        step = step.complete(number, state)

        # Rows inside the window of the energy, then the other rows
        for group in split_by_energy(process, step):
            take_step(process, state, group, choose)

        # Remasking: visible tokens become masks again
        if step.mask_again is not None:
            state.mask_again(step.mask_again)

        yield step


def take_step(process: "ReverseProcess", state: State, step: Step, choose: Choose) -> None:
    """Bring the rows of a step from x_t to x_s.

    1. The denoiser proposes tokens, at S or wherever the sampler or the energy looks.
    2. S is known from the masks, or the sampler picks it by the proposal.
    3. `choose` gives the tokens x_0 at S: draws, the winner among k candidates, or the text itself.
    4. These are revealed. All other positions stay as they are.

    A sampler that looks at drawn tokens needs 3 before 2.
    """
    device = state.ids.device
    rows = send(step.rows, device)

    # S where it follows from the masks alone
    revealed = step.revealed(device)

    # 1. p_theta(. | x_t)
    at = process.positions(step, state, rows, revealed)
    proposal = process.propose(state, step.rows, at, step.t[step.rows])

    if process.sampler.sees != TOKENS:
        # 2. S
        if revealed is None:
            revealed = Positions(process.sampler.reveal(step, proposal))
        # 3. x_0 (R, L), of which the tokens at S count
        clean = choose(step, rows, proposal, revealed)
    else:
        # 3. x_0 (R, L) wherever the sampler looks
        log_probs = state.log_probs
        clean = choose(step, rows, proposal, proposal.positions)
        # 2. S by these tokens. The tokens elsewhere are dropped.
        proposal.drawn = clean
        if revealed is None:
            revealed = Positions(process.sampler.reveal(step, proposal))
        state.restore_log_probs(log_probs, rows, revealed.flags)

    # 4. x_s ~ q(. | x_t, x_0)
    state.write(rows, revealed.flags, clean)


def split_by_energy(process: "ReverseProcess", step: Step) -> list[Step]:
    """Divide the rows of a step into those that the energy acts on and the others.

    Rows may stand at different times. Rows without the energy need the logits at S alone.
    """
    inside = process.energy_acts(step.t[step.rows])
    groups = [
        replace(step, rows=step.rows[inside], energy_acts=True),
        replace(step, rows=step.rows[~inside], energy_acts=False),
    ]
    return [group for group in groups if len(group.rows)]


def check_looks_at_masks(sampler: Sampler, looked_at: torch.Tensor, masked: torch.Tensor) -> None:
    """Raise ValueError if a sampler looks at visible tokens, for which candidates have no other token.

    Args:
        looked_at, masked: (R, L) bool.
    """
    if bool((looked_at & ~masked).any()):
        raise ValueError(
            f"The sampler {sampler!r} looks at visible tokens, but an energy weighs candidates that differ at masks "
            "alone. Pass num_candidates=1, or let its looks_at() give masks only."
        )


@dataclass(frozen=True)
class ReverseProcess:
    """The distribution that is sampled: proposals at the reveal sets of a sampler, with an energy.

    Args:
        model: makes the proposals.
        config: k, and the temperature, scope and window of the energy.
        schedule: relates times to shares of masks.
        sampler: the distribution of reveal sets.
        processors: change the proposal: those of the user and the filters of `config`.
        energy: None where none acts.
        target: the autoregressive model that speculative sampling draws from, None for all others.
    """

    model: ProposingMixin
    config: EDLMGenerationConfig
    schedule: NoiseSchedule
    sampler: Sampler
    processors: LogitsProcessorList
    energy: Energy | None = None
    target: Any = None

    def state(
        self,
        ids: torch.LongTensor,
        free: torch.Tensor,
        present: torch.Tensor,
        token_types: torch.LongTensor | None = None,
        generated: torch.Tensor | None = None,
    ) -> State:
        """The start of a chain.

        Args:
            ids: (B, L) rows with masks.
            free: (B, L) bool, the masks to fill.
            present: (B, L) bool, False at padding.
            token_types: (B, L), for networks that take them.
            generated: (B, L) bool, all that does not belong to the prompt. Unless given, `free`.
        """
        return State(
            ids=ids,
            free=free,
            present=present,
            mask_token_id=self.model.config.mask_token_id,
            schedule=self.schedule,
            token_types=token_types,
            fillable=free if generated is None else generated,
        )

    @functools.cached_property
    def window(self) -> tuple[float, float]:
        """The times between which the energy acts: (1, 0), which is never, without one or without draws."""
        if self.energy is None or self.config.do_sample is False:
            return 1.0, 0.0
        return window_times(self.config.energy_window)

    def energy_acts(self, t: torch.Tensor) -> torch.Tensor:
        """Whether the starting times `t` (B,) lie inside the window, ends included: (B,) bool."""
        # Times are quotients of floats, such as 1 - w and n / T
        low, high = self.window
        after_low = t >= low - ROUNDING
        before_high = t <= high + ROUNDING
        return after_low & before_high

    def positions(
        self,
        step: Step,
        state: State,
        rows: torch.Tensor,
        revealed: Positions | None,
    ) -> Positions:
        """Where the proposal of a step is needed. `revealed` is S, if it is known."""
        # An energy of scope `sequence` weighs complete texts: all masks, of other blocks too
        if step.energy_acts and self.config.energy_scope == "sequence":
            is_mask = state.ids[rows] == state.mask_token_id
            masked = state.present[rows] & is_mask
            if self.sampler.sees == TOKENS:
                check_looks_at_masks(self.sampler, self.sampler.looks_at(state, rows), masked)
            return Positions(masked)

        # S, or where the sampler looks to find it: a planner compares all masks of its block
        if revealed is not None:
            return revealed
        return Positions(self.sampler.looks_at(state, rows))

    def propose(
        self,
        state: State,
        rows: torch.Tensor,
        at: Positions,
        t: torch.Tensor,
    ) -> Proposal:
        """p_theta(. | x_t) of some `rows` (R,) on the CPU, at times t (R,) and the positions `at`."""
        attention_mask = state.attention_mask(rows)
        rows = send(rows, state.ids.device)
        ids = state.ids[rows]

        # M(x_t) within the block: the positions that S may hold
        free = Positions(at.flags & state.masked[rows])
        if not at.is_read:
            read_together(at, free)

        inputs = {
            "at": at,
            "attention_mask": attention_mask,
            "timesteps": send(self.sigma(t), ids.device),
            "processors": self.processors,
        }
        if state.token_types is not None:
            inputs["token_type_ids"] = state.token_types[rows]
        proposal = self.model.propose(ids, **inputs)

        # Classifier-free guidance: the same rows with their prompts masked
        if self.config.is_guided:
            prompt = (state.present & ~state.fillable)[rows]  # (R, L)
            ids_without_prompt = ids.masked_fill(prompt, state.mask_token_id)
            without_prompt = self.model.propose(ids_without_prompt, **inputs)
            proposal = proposal.guided(without_prompt, self.config.guidance_scale)

        proposal.may_reveal = free
        return proposal

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Total noise for the networks, float32."""
        return self.schedule.total(t).float()

    def proposed(self, proposal: Proposal, revealed: Positions) -> Positions:
        """The positions that candidates fill: S (scope `revealed`), or all masks M = `positions`."""
        return revealed if self.config.energy_scope == "revealed" else proposal.positions

    def candidates(
        self,
        proposal: Proposal,
        uniforms: torch.Tensor,
        revealed: Positions,
    ) -> Candidates:
        """k joint draws x^1 .. x^k ~ p_theta(. | x_t).

        Args:
            proposal: p_theta(. | x_t) of R rows.
            uniforms: (n, k) for the n positions that `proposed` gives.
            revealed: S.
        """
        proposed = self.proposed(proposal, revealed)
        tokens, log_probs = proposal.sample(uniforms, proposed)
        return Candidates.filled(proposal.ids, proposed, tokens, log_probs)
