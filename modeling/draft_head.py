"""Drafts that know the draft before them: a small head of the denoiser, for speculative sampling.

A denoiser gives the tokens of all masks at once, each without the others: draft 2 does not know
draft 1. The head adds what a pair of neighbours says. It stands beside the denoiser, whose own
logits stay as they are.

Shapes: N positions, V vocabulary, r rank.
"""

import torch
from torch import nn

from .mdlm_blocks import ZeroLinear
from .network_facts import on_device_of
from .projection import wide_projection


class DraftHead(nn.Module):
    """The bilinear term U[x_{i-1}] . W[v] that is added to the denoiser's logits of x_i.

    log q_i(v | x_{i-1}) = l_i(v) + U[x_{i-1}] . W[v] - log Z(x_{i-1})

    l_i are the logits of the proposal. W starts at zero, so that a head that was not trained changes
    nothing. Drafts that depend on earlier drafts are those of Hydra (arXiv 2402.05109), whose heads
    are larger.

    Args:
        vocab_size: V.
        rank: r.
    """

    def __init__(self, vocab_size: int, rank: int):
        super().__init__()
        self.previous = nn.Embedding(vocab_size, rank)  # U
        self.next = ZeroLinear(rank, vocab_size, bias=False)  # W

    def forward(self, previous_ids: torch.LongTensor) -> torch.Tensor:
        """The term (N, V), in at least float32, for the tokens (N,) before N positions."""
        (previous_ids,) = on_device_of(self, previous_ids)
        return wide_projection(self.next)(self.previous(previous_ids))

    @torch.no_grad()
    def resize(self, vocab_size: int) -> None:
        """Change V. New tokens have rows of zeros, for which the term is zero."""
        for layer in (self.previous, self.next):
            old = layer.weight
            weight = old.new_zeros(vocab_size, old.shape[1])
            num_kept = min(vocab_size, len(old))
            weight[:num_kept] = old[:num_kept]
            layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        self.previous.num_embeddings = vocab_size
        self.next.out_features = vocab_size


class DraftHeadMixin:
    """A denoiser that may have a `draft_head`: None where `config.draft_rank` is 0."""

    def add_draft_head(self, rank: int) -> None:
        """Give the denoiser a new head, in place of one that it may have.

        U starts as the embedding of the tokens, projected at random to r dimensions. So what W learns
        from one token holds for those too that the denoiser takes to be like it.

        Raises:
            ValueError: the rank is not positive.
        """
        if rank < 1:
            raise ValueError(f"The rank of a draft head is {rank}, but it must be at least 1.")
        self.config.draft_rank = rank
        head = DraftHead(self.config.vocab_size, rank)
        head.apply(self._init_weights)

        # (V, r), with rows of length 1 on average
        embedding = self.get_input_embeddings().weight.detach().float().cpu()
        directions = torch.randn(embedding.shape[1], rank, device="cpu")
        start = (embedding - embedding.mean(0)) @ directions
        start = start / start.square().sum(-1).mean().sqrt().clamp_min(1e-6)
        with torch.no_grad():
            head.previous.weight.copy_(start)
        self.draft_head = head.to(self.device, self.dtype)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As for every model of transformers. The head gets the same vocabulary."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.draft_head is not None:
            self.draft_head.resize(self.config.vocab_size)
        return embeddings
