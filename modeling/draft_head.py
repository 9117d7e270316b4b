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


class Correction(nn.Module):
    """B silu(A [norm x, norm y, ..]) of some vectors, where norm makes the mean 0 and the variance 1.

    B starts at zero: an untrained head changes nothing.

    Args:
        input_dim: numbers of all vectors together.
        hidden_dim: H.
        width: W.
    """

    def __init__(self, input_dim: int, hidden_dim: int, width: int):
        super().__init__()
        self.enter = nn.Linear(input_dim, width)  # A
        self.leave = ZeroLinear(width, hidden_dim, bias=False)  # B

    def correction(self, *vectors: torch.Tensor) -> torch.Tensor:
        """(N, H) of the vectors (N, ...)."""
        dtype = precision_of(self.enter, vectors[0].dtype)
        normed = [nn.functional.layer_norm(vector, vector.shape[-1:]).to(dtype) for vector in vectors]
        entered = self.enter(torch.cat(normed, dim=-1))
        return self.leave(nn.functional.silu(entered))


class DraftHead(Correction):
    """The hidden state of a draft, corrected by the tokens before it.

    h_i' = h_i + B silu(A [norm h_i, norm e(x_{i-1}), norm e(x_{i-2})])

    h_i is the denoiser's hidden state before the projection to the vocabulary, e(x) its embedding of
    a token. Drafts that depend on earlier drafts are those of Hydra (arXiv 2402.05109).

    Args:
        hidden_dim: H.
        width: W.
    """

    TOKENS_BEFORE = 2

    def __init__(self, hidden_dim: int, width: int):
        super().__init__((1 + self.TOKENS_BEFORE) * hidden_dim, hidden_dim, width)

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Corrected hidden states (N, H).

        Args:
            hidden: (N, H).
            embeddings: (N, 2, H) of the token before each position, and of the one before that.
        """
        return hidden + self.correction(hidden, *embeddings.unbind(1)).to(hidden.dtype)


class FirstDraft(Correction):
    """The hidden state of the first draft of a round, corrected by what the target has read.

    h_i' = a h_i + b C(f, x_{i-1}, x_{i-2}),  C = B silu(A [norm f, norm e(x_{i-1}), norm e(x_{i-2})])

    f is the target's last hidden state where it gave x_{i-1}, in the round before: it has read all
    tokens before that one. Drafts from the target's states are those of EAGLE (arXiv 2401.15077).
    Logits are linear in h', so that the draft is a product of experts: of the denoiser, which sees
    x_{i-1} and the masks after it, and of C, which learns alone, at every position of a text. a and b
    are numbers that start at 1.

    Args:
        hidden_dim: H.
        target_dim: G.
        width: W.
    """

    def __init__(self, hidden_dim: int, target_dim: int, width: int):
        super().__init__(target_dim + DraftHead.TOKENS_BEFORE * hidden_dim, hidden_dim, width)
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
            target_hidden: (N, G).
            embeddings: (N, 2, H) as in `DraftHead`.
        """
        # C learns alone. Its gradient is 0 here and not absent, since DDP looks for its weights
        expert = self.of_target(target_hidden, embeddings).to(hidden)
        if expert.requires_grad:
            expert.register_hook(torch.zeros_like)
        of_denoiser, of_target = self.shares.to(hidden)
        return of_denoiser * hidden + of_target * expert

    def of_target(self, target_hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """C (N, H), the expert that needs no denoiser."""
        return self.correction(target_hidden, *embeddings.unbind(1))


class DraftHeadMixin:
    """A denoiser that may have a `draft_head`, and with it a `first_draft`.

    The first is None where `config.draft_width` is 0, the second where `config.draft_target_dim` is.
    """

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, FirstDraft):
            initialization.ones_(module.shares)

    def make_draft_heads(self) -> None:
        """The heads that the configuration has."""
        sizes = self.config
        self.draft_head = self.first_draft = None
        if sizes.draft_width:
            self.draft_head = DraftHead(sizes.hidden_dim, sizes.draft_width)
        if sizes.draft_target_dim:
            self.first_draft = FirstDraft(sizes.hidden_dim, sizes.draft_target_dim, sizes.draft_width)

    def add_draft_head(self, width: int) -> None:
        """Give the denoiser a new head.

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
        """Let the first draft of a round read the target, by a new head of the same width.

        Args:
            target_dim: G, the hidden size of the target.

        Raises:
            ValueError: there is no draft head, or the size is not positive.
        """
        if self.draft_head is None:
            raise ValueError("A first draft that reads its target needs a draft head: call add_draft_head(width).")
        if target_dim < 1:
            raise ValueError(f"target_dim is {target_dim}, but it must be the hidden size of the target, at least 1.")
        sizes = self.config
        sizes.draft_target_dim = target_dim
        self.first_draft = FirstDraft(sizes.hidden_dim, target_dim, sizes.draft_width)
        self.start(self.first_draft)

    def start(self, head: nn.Module) -> None:
        """Start a head as that of a new model, in the precision and place of this one."""
        head.apply(self._init_weights)
        head.to(self.device, self.dtype)

    def hidden_of_drafts(
        self,
        hidden: torch.Tensor,
        previous_ids: torch.LongTensor,
        target_hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The hidden states (N, H) of drafts after the tokens before them.

        Args:
            hidden: (N, H) of `hidden_at`.
            previous_ids: (N, 2) the token before each draft and the one before that, the mask token
                where a text begins.
            target_hidden: (N, G) for first drafts, the target's states where it gave the tokens before.
        """
        embeddings = self.embeddings_of(previous_ids)
        if target_hidden is None:
            return self.draft_head(*on_device_of(self.draft_head, hidden, embeddings))
        return self.first_draft(*on_device_of(self.first_draft, hidden, target_hidden, embeddings))

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
