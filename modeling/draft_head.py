"""Drafts that know the drafts before them: a small head of the denoiser, for speculative sampling.

A denoiser gives the tokens of all masks at once, each without the others: draft 3 does not know
drafts 1 and 2. The head corrects its hidden state at a draft by the two tokens before. The first
draft of a round, whose tokens before are visible, may be corrected by what the target has read. The
denoiser, whose own logits stay as they are, makes the logits of the draft from it as from any other.

Shapes: N positions, H hidden, W width of the head, G hidden of the target.
"""

import torch
from torch import nn
from transformers import initialization

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


class FirstDraft(nn.Module):
    """The hidden state of the first draft of a round, corrected by what the target has read.

    h_i' = a h_i + b C(f, x_{i-1}, x_{i-2}),  C = B silu(A [norm f, norm e(x_{i-1}), norm e(x_{i-2})])

    f is the target's last hidden state where it gave x_{i-1}, in the round before: it has read all
    tokens before that one. Drafts from the target's states are those of EAGLE (arXiv 2401.15077).
    Logits are linear in h', so that the draft is a product of experts: of the denoiser, which sees
    x_{i-1} and the masks after it, and of C, which learns alone, at every position of a text. a and b
    are numbers that start at 1, and B starts at zero.

    Args:
        hidden_dim: H.
        target_dim: G.
        width: W.
    """

    def __init__(self, hidden_dim: int, target_dim: int, width: int):
        super().__init__()
        self.enter = nn.Linear(target_dim + DraftHead.TOKENS_BEFORE * hidden_dim, width)  # A
        self.leave = ZeroLinear(width, hidden_dim, bias=False)  # B
        self.shares = nn.Parameter(torch.ones(2))  # a and b

    def forward(
        self,
        hidden: torch.Tensor,
        target_hidden: torch.Tensor,
        embeddings: torch.Tensor,
    ) -> torch.Tensor:
        """Corrected hidden states (N, H).

        Args:
            hidden: (N, H).
            target_hidden: (N, G), 0 where the target has read nothing.
            embeddings: (N, 2, H) of the token before each position, and of the one before that.
        """
        # C learns alone: the few first drafts of a step would only disturb it
        expert = self.of_target(target_hidden, embeddings).detach().to(hidden)
        of_denoiser, of_target = self.shares.to(hidden)
        return of_denoiser * hidden + of_target * expert

    def of_target(self, target_hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """C (N, H), the expert that needs no denoiser."""
        # [f, e(x_{i-1}), e(x_{i-2})], each normalised by itself: (N, G + 2H)
        dtype = precision_of(self.enter, target_hidden.dtype)
        parts = [target_hidden, *embeddings.unbind(1)]
        inputs = [nn.functional.layer_norm(part, part.shape[-1:]).to(dtype) for part in parts]

        # (N, G + 2H) -> (N, W) -> (N, H)
        entered = self.enter(torch.cat(inputs, dim=-1))
        return self.leave(nn.functional.silu(entered))


class DraftHeadMixin:
    """A denoiser that may have a `draft_head`, and with it a `first_draft`.

    The first is None where `config.draft_width` is 0, the second where `config.draft_target_dim` is.
    """

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, FirstDraft):
            initialization.ones_(module.shares)

    def make_draft_heads(self) -> None:
        """New heads as the configuration has them."""
        width = self.config.draft_width
        target_dim = self.config.draft_target_dim
        self.draft_head = DraftHead(self.config.hidden_dim, width) if width else None
        self.first_draft = FirstDraft(self.config.hidden_dim, target_dim, width) if target_dim else None

    def add_draft_head(self, width: int) -> None:
        """Give the denoiser a new head, in place of one that it may have.

        Raises:
            ValueError: the width is not positive.
        """
        if width < 1:
            raise ValueError(f"The width of a draft head is {width}, but it must be at least 1.")
        self.config.draft_width = width
        self.config.draft_target_dim = 0
        self.make_draft_heads()
        self.start(self.draft_head)

    def add_first_draft(self, target_dim: int) -> None:
        """Let the first draft of a round read the target, too, by a new head of the same width.

        Args:
            target_dim: G, the hidden size of the target.

        Raises:
            ValueError: there is no draft head, or the size is not positive.
        """
        width = self.config.draft_width
        if not width:
            raise ValueError(
                "A first draft that reads the target needs a draft head: call add_draft_head(width) first."
            )
        if target_dim < 1:
            raise ValueError(f"target_dim is {target_dim}, but it must be the hidden size of the target, at least 1.")
        self.config.draft_target_dim = target_dim
        self.first_draft = FirstDraft(self.config.hidden_dim, target_dim, width)
        self.start(self.first_draft)

    def start(self, head: nn.Module) -> None:
        """Start a head as that of a new model, in the precision and place of this one."""
        head.apply(self._init_weights)
        head.to(self.device, self.dtype)

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
        hidden, embeddings = on_device_of(self.draft_head, hidden, self.embeddings_of(previous_ids))
        return self.draft_head(hidden, embeddings)

    def hidden_of_first_drafts(
        self,
        hidden: torch.Tensor,
        previous_ids: torch.LongTensor,
        target_hidden: torch.Tensor,
    ) -> torch.Tensor:
        """The hidden states (N, H) of the first drafts of a round.

        Args:
            hidden: (N, H) of `hidden_at`.
            previous_ids: (N, 2) as in `hidden_of_drafts`.
            target_hidden: (N, G) the target's states where it gave the tokens before, 0 for none.
        """
        embeddings = self.embeddings_of(previous_ids)
        inputs = on_device_of(self.first_draft, hidden, target_hidden, embeddings)
        return self.first_draft(*inputs)

    def embeddings_of(self, previous_ids: torch.LongTensor) -> torch.Tensor:
        """(N, 2, H) of tokens (N, 2)."""
        embedding = self.get_input_embeddings()
        (previous_ids,) = on_device_of(embedding, previous_ids)
        return embedding(previous_ids)


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
