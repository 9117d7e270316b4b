"""A head that gives the tokens of one planned step a joint distribution: the study is reveal_set_heads.py.

q(x_S | x_t) = prod_j q(x_{s_j} | x_{s_1} .. x_{s_{j-1}}, x_t),    s_1 < s_2 < ...

Shapes: R rows, n tokens of a reveal set, H hidden, L positions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from edlm_hf.modeling.masked_diffusion import sample_categorical
from edlm_hf.modeling.mdlm_blocks import ZeroLinear
from edlm_hf.modeling.positions import Positions
from edlm_hf.modeling.reverse_chain import chain
from edlm_hf.modeling.vocabulary import suppress_impossible


class RevealSet(NamedTuple):
    """The text at the reveal sets of R rows, padded to the n tokens of the largest.

    Args:
        hidden: (R, n, H) of the denoiser.
        tokens: (R, n) the text at S, from left to right.
        places: (R, n) where they stand.
        present: (R, n) bool, False at padding.
    """

    hidden: torch.Tensor
    tokens: torch.LongTensor
    places: torch.LongTensor
    present: torch.Tensor


class RevealSetHead(nn.Module):
    """h_j' = h_j + B f(h_j, s_j, x_{s_{j-1}}, s_{j-1}; the same of all i < j), f a causal transformer.

    B starts at zero, so that a head that was not trained changes nothing.
    """

    def __init__(self, hidden_dim: int, length: int, width: int = 192, depth: int = 2):
        super().__init__()
        self.enter = nn.Linear(2 * hidden_dim, width)
        self.place = nn.Embedding(length, width)
        self.place_before = nn.Embedding(length + 1, width)  # the last one: nothing before

        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = ZeroLinear(width, hidden_dim, bias=False)
        nn.init.zeros_(self.leave.weight)

    def forward(self, revealed: RevealSet, embeddings: torch.Tensor) -> torch.Tensor:
        """Hidden states (R, n, H), each corrected by the tokens of S before it.

        Args:
            embeddings: (R, n, H) of the tokens of S.
        """
        # What stands before token j is token j - 1, and nothing before the first
        before = torch.roll(embeddings, 1, dims=1)
        before[:, 0] = 0
        entered = self.entered(revealed.hidden, before, revealed.places, self.places_before(revealed.places))

        # Token j sees the tokens up to j - 1. Padding comes last, where nobody sees it
        n = entered.shape[1]
        later = torch.ones(n, n, dtype=torch.bool, device=entered.device).triu(1)
        inner = self.trunk(entered, mask=later, is_causal=True)
        return revealed.hidden + self.leave(inner).to(revealed.hidden.dtype)

    def entered(
        self,
        hidden: torch.Tensor,
        before: torch.Tensor,
        places: torch.LongTensor,
        places_before: torch.LongTensor,
    ) -> torch.Tensor:
        """What the trunk reads (R, n, width), of hidden states and tokens before (R, n, H) and places (R, n)."""
        inputs = [nn.functional.layer_norm(part, part.shape[-1:]) for part in (hidden, before)]
        entered = self.enter(torch.cat(inputs, dim=-1))
        return entered + self.place(places) + self.place_before(places_before)

    def places_before(self, places: torch.LongTensor) -> torch.LongTensor:
        """Where the tokens before (R, n) stand, the last number of all for none."""
        places_before = torch.roll(places, 1, dims=1)
        places_before[:, 0] = self.place_before.num_embeddings - 1
        return places_before

    def corrected(self, hidden: torch.Tensor, entered: torch.Tensor, caches: list["Cache"]) -> torch.Tensor:
        """Hidden states (R, 1, H) of the next token alone, after those that `caches` hold."""
        inner = entered  # (R, 1, width)
        for layer, cache in zip(self.trunk.layers, caches, strict=True):
            inner = inner + cache.attend(layer.self_attn, layer.norm1(inner))
            inner = inner + layer.linear2(layer.activation(layer.linear1(layer.norm2(inner))))
        return hidden + self.leave(self.trunk.norm(inner)).to(hidden.dtype)


class Cache:
    """Keys and values of one layer for up to n tokens, which come one after the other."""

    def __init__(self, num_rows: int, n: int, attention: nn.MultiheadAttention):
        shape = (num_rows, attention.num_heads, n, attention.head_dim)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)
        self.count = 0

    def attend(self, attention: nn.MultiheadAttention, inputs: torch.Tensor) -> torch.Tensor:
        """The attention of the next token (R, 1, width) to itself and all before it."""
        projected = nn.functional.linear(inputs, attention.in_proj_weight, attention.in_proj_bias)
        parts = projected.view(len(inputs), 3, attention.num_heads, 1, attention.head_dim)
        query, key, value = parts.unbind(1)  # (R, heads, 1, width / heads)

        self.keys[:, :, self.count] = key[:, :, 0]
        self.values[:, :, self.count] = value[:, :, 0]
        self.count += 1
        seen = slice(0, self.count)
        found = nn.functional.scaled_dot_product_attention(query, self.keys[:, :, seen], self.values[:, :, seen])
        return attention.out_proj(found.view(inputs.shape))


class Reader:
    """Reads the reveal sets of a planner along texts.

    Args:
        model: a composite, whose denoiser projects hidden states to logits.
        num_steps: T of `spaced`.
    """

    def __init__(self, model, num_steps: int):
        self.denoiser = getattr(model, "denoiser", model)
        self.process = model.reverse_process(
            energy=None,
            sampler="spaced",
            score="entropy",
            max_denoising_steps=num_steps,
            num_candidates=1,
        )
        self.config = model.config

    @torch.no_grad()
    def paths(self, texts: torch.LongTensor) -> Iterator[RevealSet]:
        """The T reveal sets of texts (R, L) that begin with a start token."""
        free = torch.ones_like(texts, dtype=torch.bool)
        free[:, 0] = False
        ids = texts.masked_fill(free, self.config.mask_token_id)
        state = self.process.state(ids, free, torch.ones_like(free))

        # `choose` of the chain gives the text itself and keeps what the step saw
        seen = []

        def choose(step, rows, proposal, revealed: Positions) -> torch.LongTensor:
            hidden = proposal.hidden[proposal.numbers(revealed)]
            seen.append(self.padded(hidden.float(), texts[rows], revealed.flags))
            return texts[rows]

        for _ in chain(self.process, state, choose, noise=None):
            yield from seen
            seen.clear()

    def padded(self, hidden: torch.Tensor, texts: torch.LongTensor, flags: torch.Tensor) -> RevealSet:
        """Hidden states (N, H) and texts (R, L) at S, (R, L) bool, as rows of equal length."""
        # (R, L): where a position stands among those of its row, which puts S first in order
        order = flags.long().argsort(dim=-1, descending=True, stable=True)
        n = int(flags.sum(-1).max())
        places = order[:, :n]
        present = flags.gather(-1, places)

        of_rows = hidden.new_zeros(*places.shape, hidden.shape[-1])
        of_rows[present] = hidden
        return RevealSet(of_rows, texts.gather(-1, places), places, present)

    def embeddings(self, revealed: RevealSet) -> torch.Tensor:
        """(R, n, H) of the tokens at S."""
        return self.denoiser.get_input_embeddings()(revealed.tokens).detach().float()

    @torch.no_grad()
    def draw(self, head: RevealSetHead, revealed: RevealSet, uniforms: torch.Tensor) -> torch.LongTensor:
        """Tokens (R, n) of S by a head, one after the other.

        Args:
            revealed: whose tokens play no part.
            uniforms: (R, n) float64, one for every token.
        """
        num_rows, n = revealed.places.shape
        places_before = head.places_before(revealed.places)
        caches = [Cache(num_rows, n, layer.self_attn) for layer in head.trunk.layers]
        embedding = self.denoiser.get_input_embeddings()
        project = self.denoiser.get_output_embeddings()

        drawn = torch.empty_like(revealed.tokens)
        before = torch.zeros_like(revealed.hidden[:, :1])
        for j in range(n):
            now = slice(j, j + 1)
            hidden = revealed.hidden[:, now]
            entered = head.entered(hidden, before, revealed.places[:, now], places_before[:, now])
            corrected = head.corrected(hidden, entered, caches)

            logits = suppress_impossible(project(corrected[:, 0]).float(), self.config)
            drawn[:, now], _ = sample_categorical(logits, uniforms[:, now])
            before = embedding(drawn[:, now])
        return drawn

    def nats(self, hidden: torch.Tensor, revealed: RevealSet) -> torch.Tensor:
        """-log q of the text at S by hidden states (R, n, H): (N,), row by row."""
        logits = self.denoiser.get_output_embeddings()(hidden[revealed.present]).float()
        logits = suppress_impossible(logits, self.config)
        return nn.functional.cross_entropy(logits, revealed.tokens[revealed.present], reduction="none")
