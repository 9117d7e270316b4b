"""Drafts of speculative sampling, which the denoiser makes in one call.

Shapes: R rows, L positions, N rows that go on, B rows of the batch, H hidden, G hidden of the target.
"""

import dataclasses
from dataclasses import dataclass

import torch

from .confidence import likeliest_tokens
from .draft_head import tokens_before
from .masked_diffusion import sample_categorical
from .positions import Positions
from .proposal import Proposal
from .reverse_chain import ReverseProcess


@dataclass(frozen=True)
class Runs:
    """Positions that are consecutive in every row, counted from 0 in their row.

    Args:
        count: (R,) the positions of a row.
        first: (R,) the column of the first one.
        offset: (R,) the number of the first one among the positions of all rows.
    """

    count: torch.LongTensor
    first: torch.LongTensor
    offset: torch.LongTensor

    @classmethod
    def of(cls, flags: torch.Tensor) -> "Runs":
        """The positions of a mask (R, L) bool."""
        count = flags.sum(-1)
        first = flags.long().argmax(-1)
        offset = count.cumsum(0) - count
        return cls(count, first, offset)

    def at(self, rows: torch.LongTensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns (N,) of position `number` of some `rows` (N,)."""
        return rows, self.first[rows] + number

    def numbers(self, rows: torch.LongTensor, number: int) -> torch.LongTensor:
        """The numbers (N,) of these positions among those of all rows."""
        return self.offset[rows] + number


class Drafter:
    """Draws x_1 .. x_n ~ q at the next masks of every row.

    The marginals p_theta(. | x_t) of the denoiser are independent of each other. With a draft head
    (draft_head.py) x_i ~ q_i(. | x_{i-1}, x_{i-2}) from left to right, but x_1, whose tokens before are
    visible, is the denoiser's own. With a head of the first draft, q_1 is corrected by the state
    of the target where it gave the token before, in the round before. The first round has no such state.
    """

    def __init__(self, process: ReverseProcess, noise, batch_size: int):
        self.noise = noise
        self.is_greedy = process.config.do_sample is False

        # The denoiser if it has a draft head
        denoiser = getattr(process.model, "denoiser", process.model)
        has_head = getattr(denoiser, "draft_head", None) is not None
        self.denoiser = denoiser if has_head else None

        # Whether the first draft reads this target, whose states at the last tokens are (B, G), of
        # the rows (B,) that have some
        self.reads_states = False
        if getattr(denoiser, "first_draft", None) is not None:
            self.reads_states = process.target.hidden_size == denoiser.config.draft_target_dim
        self.states: torch.Tensor | None = None
        self.has_state = torch.zeros(batch_size, dtype=torch.bool)

    def draft(
        self,
        rows: torch.Tensor,
        proposal: Proposal,
        where: Positions,
        windows: Runs,
    ) -> tuple[torch.LongTensor, Proposal]:
        """Texts (R, L) with drafts at some positions, the first ones of `windows`, and their q."""
        uniforms = None if self.is_greedy else self.noise.per_draw(rows, where, 1)
        if self.denoiser is not None:
            return self.draft_in_turn(rows, proposal, where, windows, uniforms)

        # All at once
        if self.is_greedy:
            tokens = proposal.likeliest(where)
        else:
            tokens, _ = proposal.sample(uniforms, where)
        return where.put(proposal.ids, tokens.flatten()), proposal

    def draft_in_turn(
        self,
        rows: torch.Tensor,
        proposal: Proposal,
        where: Positions,
        windows: Runs,
        uniforms: torch.Tensor | None,
    ) -> tuple[torch.LongTensor, Proposal]:
        """`draft` with a head: from left to right, each draft by the tokens before it.

        Args:
            uniforms: (n, 1) of all n drafts, None for the likeliest tokens.
        """
        # The corrected hidden states stand in the proposal, which gives log q afterwards
        texts = proposal.ids.clone()
        drafts = Runs.of(where.flags)
        drafted = dataclasses.replace(proposal, hidden=proposal.hidden.clone())
        going = torch.arange(len(texts), device=texts.device)  # (N,)
        for number in range(int(drafts.count.max())):
            going = going[number < drafts.count[going]]
            at = drafts.at(going, number)
            numbers = windows.numbers(going, number)
            before = tokens_before(texts, *at, proposal.config.mask_token_id)

            # h_i' (N, H). The tokens before the first draft are visible to the denoiser
            hidden = drafted.hidden[numbers]
            if number == 0:
                hidden = self.hidden_of_first(rows[going], hidden, before)
            else:
                hidden = self.denoiser.hidden_of_drafts(hidden, before)
            drafted.hidden[numbers] = hidden.to(drafted.hidden)

            # x_i from its logits (N, V)
            logits = drafted.processed(numbers)
            if uniforms is None:
                texts[at] = likeliest_tokens(logits)
            else:
                draft_numbers = drafts.numbers(going, number)
                of_numbers = uniforms[draft_numbers.to(uniforms.device)]
                tokens, _ = sample_categorical(logits, of_numbers)
                texts[at] = tokens.squeeze(1)
        return texts, drafted

    def hidden_of_first(
        self,
        rows: torch.LongTensor,
        hidden: torch.Tensor,
        before: torch.LongTensor,
    ) -> torch.Tensor:
        """Hidden states (N, H) of the first drafts of `rows` (N,), corrected where there is a state."""
        has_state = self.has_state[rows.cpu()]
        if not bool(has_state.any()):
            return hidden
        states = self.states[rows[has_state]]
        corrected = self.denoiser.hidden_of_drafts(hidden[has_state], before[has_state], states)
        hidden[has_state] = corrected.to(hidden)
        return hidden

    def keep_states(self, rows: torch.LongTensor, states: torch.Tensor) -> None:
        """Keep the states (R, G) by which the target gave the last tokens of `rows` (R,)."""
        if self.states is None:
            self.states = states.new_zeros(len(self.has_state), states.shape[-1])
        self.states[rows] = states
        self.has_state[rows.cpu()] = True
