"""The reverse chain x_1 -> x_0, written once: a sampler says where, something else says what.

Generation chooses draws, a likelihood chooses the text itself. Sampler.steps yields the steps, `ReverseProcess` knows
the networks, and `choose` fills what is revealed.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessorList

from .canvas_edlm import attention_of
from .energies import Candidates, Energy
from .generation_config_edlm import EDLMGenerationConfig, window_times
from .masked_diffusion import NoiseSchedule
from .proposal import Proposal, ProposingMixin
from .samplers import TOKENS, Sampler, State, Step

# (step, rows (R,), proposal, revealed (R, L)) -> tokens (R, L) at the revealed positions
Choose = Callable[[Step, torch.Tensor, Proposal, torch.Tensor], torch.LongTensor]


@dataclass(frozen=True)
class ReverseProcess:
    """What is sampled: proposals of a model at the reveal sets of a sampler, weighed by an energy or not.

    Args:
        config: k, the temperature, scope and window of the energy.
        processors: change the proposal, those of the user and the filters of `config`.
        energy: None where none acts.
    """

    model: ProposingMixin
    config: EDLMGenerationConfig
    schedule: NoiseSchedule
    sampler: Sampler
    processors: LogitsProcessorList
    energy: Energy | None = None

    def state(
        self,
        ids: torch.LongTensor,
        free: torch.Tensor,
        present: torch.Tensor,
        token_types: torch.LongTensor | None = None,
        generated: torch.Tensor | None = None,
    ) -> State:
        """The start of a chain: rows `ids` (B, L) whose masks at `free` (B, L) bool are to be filled.

        `generated` (B, L) bool is what does not belong to the prompt, `free` unless given.
        """
        mask_token_id = self.model.config.mask_token_id
        fillable = free if generated is None else generated
        return State(ids, free, present, mask_token_id, self.schedule, token_types, fillable)

    @functools.cached_property
    def window(self) -> tuple[float, float]:
        """The times between which the energy acts; (1, 0), which is never, where there is none."""
        return (1.0, 0.0) if self.energy is None else window_times(self.config.energy_window)

    def weighs(self, t: torch.Tensor) -> torch.Tensor:
        """Which rows the energy acts on: starting times (B,) inside the window, the ends included -> bool (B,)."""
        low, high = self.window
        return (t >= low - 1e-9) & (t <= high + 1e-9)

    def propose(self, state: State, rows: torch.Tensor, at: torch.Tensor, t: torch.Tensor) -> Proposal:
        """p_theta(. | x_t) of some `rows` (R,) at the positions `at` (R, L) bool, at times t (R,)."""
        given = {
            "at": at,
            "attention_mask": attention_of(state.present[rows]),
            "timesteps": self.sigma(t).to(state.ids.device),
            "processors": self.processors,
        }
        if state.token_types is not None:
            given["token_type_ids"] = state.token_types[rows]
        proposal = self.model.propose(state.ids[rows], **given)

        scale = self.config.guidance_scale
        if scale not in (None, 1):
            prompt = (state.present & ~state.fillable)[rows]
            without = state.ids[rows].masked_fill(prompt, state.mask_token_id)
            proposal = proposal.guided(self.model.propose(without, **given), scale)
        proposal.free = at & state.masked[rows]
        return proposal

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Total noise for the networks, float32."""
        return self.schedule.total(t).float()

    def positions(self, step: Step, state: State, rows: torch.Tensor) -> torch.Tensor:
        """Where the proposal of a step is needed, (R, L) bool.

        An energy of scope `sequence` weighs complete texts, and a planner compares all masks of its block. Otherwise
        only the tokens at S are ever looked at.
        """
        if step.weighs and self.config.energy_scope == "sequence":
            return state.present[rows] & (state.ids[rows] == state.mask_token_id)
        if step.reveal is not None:
            return step.known(state.ids.device)
        return self.sampler.looks_at(state, rows)

    def candidates(self, proposal: Proposal, uniforms: torch.Tensor, revealed: torch.Tensor) -> Candidates:
        """k joint draws from the proposal, over all masks M (scope `sequence`) or over S (`revealed`).

        Args:
            uniforms: (n, k). revealed: (R, L) bool, S.
        """
        proposed = self.proposed(proposal, revealed)
        tokens, log_probs = proposal.draw(uniforms, proposed)
        return Candidates.filled(proposal.ids, proposed, tokens, log_probs)

    def proposed(self, proposal: Proposal, revealed: torch.Tensor) -> torch.Tensor:
        """The positions (R, L) bool that candidates fill."""
        return revealed if self.config.energy_scope == "revealed" else proposal.masked & proposal.at


def chain(process: ReverseProcess, state: State, choose: Choose, noise) -> Iterator[Step]:
    """Run the reverse chain on `state`, step by step.

    1. The sampler yields a step: the rows that act, and S where it follows from the masks alone.
    2. The denoiser proposes tokens, at S or wherever the sampler or the energy looks.
    3. A planner picks S by the proposal.
    4. `choose` fills S. All other masks stay.

    Rows that an energy weighs and rows that it does not (they may stand at different times) go one group after the
    other: the second need no more than the logits at S.
    """
    device, sampler = state.ids.device, process.sampler
    for number, step in enumerate(sampler.steps(state, noise)):
        step = step.complete(number, state)
        weighs = process.weighs(step.t[step.rows])
        for some, weigh in ((step.rows[weighs], True), (step.rows[~weighs], False)):
            if not len(some):
                continue
            part, rows = replace(step, rows=some, weighs=weigh), some.to(device)
            proposal = process.propose(state, rows, process.positions(part, state, rows), step.t[some])
            if sampler.sees == TOKENS:
                before = state.log_probs
                proposal.drawn = choose(part, rows, proposal, proposal.at)
                revealed = reveal_set(sampler, part, proposal)
                state.write(rows, revealed, proposal.drawn)
                state.keep_log_probs(before, rows, revealed)
            else:
                revealed = reveal_set(sampler, part, proposal)
                state.write(rows, revealed, choose(part, rows, proposal, revealed))
        if step.mask_again is not None:
            state.mask_again(step.mask_again)
        yield step


def reveal_set(sampler: Sampler, step: Step, proposal: Proposal) -> torch.Tensor:
    """S (R, L) bool: that of the step, or what the sampler makes of the proposal."""
    return sampler.reveal(step, proposal) if step.reveal is None else step.known(proposal.ids.device)
