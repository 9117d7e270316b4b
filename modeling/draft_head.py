"""Drafts that know the drafts before them: a small head of the denoiser, for speculative sampling.

A denoiser gives the tokens of all masks at once, each without the others: draft 3 does not know
drafts 1 and 2. The head corrects its hidden state at a draft by the two tokens before. The
denoiser, whose own logits stay as they are, makes the logits of the draft from it as from any other.

Shapes: N positions, H hidden, W width of the head.
"""

import torch
from torch import nn

from .mdlm_blocks import ZeroLinear
from .network_facts import on_device_of
from .projection import precision_of


class DraftHead(nn.Module):
    """The hidden state of a draft, corrected by the tokens before it.

    h_i' = h_i + B silu(A [norm h_i, norm e(x_{i-1}), norm e(x_{i-2})])

    h_i is the denoiser's hidden state before the projection to the vocabulary, e(x) its embedding of
    a token, and norm makes the mean 0 and the variance 1. B starts at zero, so that a head that was
    not trained changes nothing. Drafts that depend on earlier drafts are those of Hydra (arXiv
    2402.05109).

    Args:
        hidden_dim: H.
        width: W.
    """

    TOKENS_BEFORE = 2

    def __init__(self, hidden_dim: int, width: int):
        super().__init__()
        self.enter = nn.Linear((1 + self.TOKENS_BEFORE) * hidden_dim, width)  # A
        self.leave = ZeroLinear(width, hidden_dim, bias=False)  # B

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Corrected hidden states (N, H).

        Args:
            hidden: (N, H).
            embeddings: (N, 2, H) of the token before each position, and of the one before that.
        """
        # [h_i, e(x_{i-1}), e(x_{i-2})], each normalised by itself: (N, 3, H)
        dtype = precision_of(self.enter, hidden.dtype)
        inputs = torch.cat([hidden.unsqueeze(1), embeddings.to(hidden)], dim=1)
        inputs = nn.functional.layer_norm(inputs, inputs.shape[-1:])

        # (N, 3H) -> (N, W) -> (N, H)
        entered = self.enter(inputs.flatten(1).to(dtype))
        inner = nn.functional.silu(entered)
        return hidden + self.leave(inner).to(hidden.dtype)


class DraftHeadMixin:
    """A denoiser that may have a `draft_head`: None where `config.draft_width` is 0."""

    def add_draft_head(self, width: int) -> None:
        """Give the denoiser a new head, in place of one that it may have.

        Raises:
            ValueError: the width is not positive.
        """
        if width < 1:
            raise ValueError(f"The width of a draft head is {width}, but it must be at least 1.")

        # Its start is the one of a new model, in the precision and place of this one
        self.config.draft_width = width
        head = DraftHead(self.config.hidden_dim, width)
        head.apply(self._init_weights)
        self.draft_head = head.to(self.device, self.dtype)

    def hidden_of_drafts(
        self,
        hidden: torch.Tensor,
        previous_ids: torch.LongTensor,
    ) -> torch.Tensor:
        """The hidden states (N, H) of drafts after the tokens before them.

        Args:
            hidden: (N, H) of `hidden_at`.
            previous_ids: (N, 2) the token before each draft and the one before that, the mask token
                where a text begins.
        """
        embedding = self.get_input_embeddings()
        (previous_ids,) = on_device_of(embedding, previous_ids)
        hidden, embeddings = on_device_of(self.draft_head, hidden, embedding(previous_ids))
        return self.draft_head(hidden, embeddings)


def tokens_before(
    ids: torch.LongTensor,
    rows: torch.LongTensor,
    columns: torch.LongTensor,
    mask_token_id: int,
) -> torch.LongTensor:
    """The two tokens (N, 2) before N places of texts (R, L), the nearest one first.

    Where a text begins they are the mask token. Before place (0, 1) of the text (7, 8, 9) these are
    7 and the mask, before (0, 2) they are 8 and 7.
    """
    # (N,) each
    before = []
    for distance in (1, 2):
        column = (columns - distance).clamp_min(0)
        token = ids[rows, column]
        before.append(token.masked_fill(columns < distance, mask_token_id))
    return torch.stack(before, dim=1)
