"""Where speculative sampling drafts: at the next masks of every row, left to right."""

import math
from dataclasses import dataclass

import torch

from .chain_state import State
from .planners import check_range
from .samplers import TOKENS, Sampler, Step

# Without a given draft_length, a draft is made if it is reached with at least this chance. One that
# is accepted saves a token's share of a round, one in vain costs the target a column.
LEAST_CHANCE = 0.02
# More than any text has, and small enough for all sums
MOST_DRAFTS = 2**31


@dataclass(frozen=True)
class Speculative(Sampler):
    """S = the next n + 1 masks of every row, for n drafts and one token of the target itself.

    A step is a round of speculative sampling (speculative_sampling.py). It fills some of S from the
    left, one position at least, and leaves the mask at the others. The distribution does not depend
    on n.

    Args:
        draft_length: n. Unless given, a row makes as many drafts as are reached with a chance of a
            fiftieth. Draft n is reached with the chance a^n, where a is the share of the row's drafts
            that was accepted so far, (accepted + 1) / (tested + 2).
    """

    draft_length: int | None = None
    sees = TOKENS

    def __post_init__(self):
        if self.draft_length is not None:
            check_range("draft_length", self.draft_length, 1, None)

    def steps(self, state, noise):
        check_masks_come_last(state)
        total = state.free.sum(-1).cpu()
        left = total

        # (B,) drafts that the target has looked at, and those that it has accepted
        tested = torch.zeros_like(total)
        accepted = torch.zeros_like(total)

        while bool(left.any()):
            # (B, L) the next n + 1 masks
            most = self.num_drafts(tested, accepted) + 1
            masked = state.masked.cpu()
            window = masked & (masked.cumsum(-1) <= most.unsqueeze(1))
            yield Step(state.time_of(left, total), reveal=window)

            # A row that was filled up to position m of its window has accepted m - 1 drafts
            is_filled = window & (state.ids != state.mask_token_id).cpu()
            num_filled = is_filled.sum(-1)  # (B,)
            num_drafts = (window.sum(-1) - 1).clamp_min(0)
            accepted = accepted + (num_filled - 1).clamp_min(0)
            tested = tested + torch.minimum(num_filled, num_drafts)
            left = state.masked.sum(-1).cpu()

    def num_drafts(self, tested: torch.LongTensor, accepted: torch.LongTensor) -> torch.LongTensor:
        """n (B,) after so many drafts (B,) were `tested` and `accepted`.

        It is 5 at first, where a = 1/2: 1/32 is more than a fiftieth, and 1/64 is less.
        """
        if self.draft_length is not None:
            return torch.full_like(tested, min(self.draft_length, MOST_DRAFTS))

        # a^n >= c  where  n <= log c / log a
        share = (accepted + 1).double() / (tested + 2).double()
        most = math.log(LEAST_CHANCE) / share.log()
        return most.floor().long().clamp_min(1)


def check_masks_come_last(state: State) -> None:
    """Raise ValueError unless nothing but masks follows the first mask of every row."""
    is_mask = state.ids == state.mask_token_id
    after_masks = is_mask.cumsum(-1) > 0
    text_after_masks = ~is_mask & state.present & after_masks
    if bool(text_after_masks.any()):
        raise ValueError(
            "sampler='speculative' writes a text from left to right, since its target is an "
            "autoregressive model, which does not see the text behind a mask. Give prompts whose "
            "masks stand at their end, or take another sampler, such as 'spaced'."
        )
