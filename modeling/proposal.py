"""The proposal p_theta(. | x_t): the denoiser's distribution of the clean token, at few positions.

Here is everything that is known about it: what the logits are made of, how many of them exist at a time, which ids can
never be drawn, the filters of the user, draws, log-probabilities and scores of confidence.

Shapes: R rows, L positions, N of these at which the proposal is wanted, V vocabulary (mask included), k draws.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from transformers import LogitsProcessorList, PreTrainedConfig

from .confidence import Score, likeliest_tokens
from .masked_diffusion import at_least_float32, sample_categorical
from .vocabulary import suppress_impossible

# Logits that exist at a time: with their float64 CDF they take about 100 MB.
MOST_LOGITS = 2**23
# Logits are at least -LARGE where two of them are compared, so that their difference exists.
LARGE = 1e9


@dataclass
class Proposal:
    """p_theta(. | x_t) at the N positions `at`.

    Args:
        ids: (R, L) x_t. at: (R, L) bool.
        config: of the model, names the mask token and the ids without a token.
        vocab_size: V.
        hidden: (N, ...) what the logits are made of; None where no network was asked.
        project: the map from some rows of `hidden` to new logits (n, V) in at least float32.
        attention_mask: (R, L), 0 at padding; None where nothing is padding. timesteps: (R,) total noise sigma.
        processors: of the user, called as (ids (n, L), logits (n, V)).
        free: (R, L) bool, the positions of `at` that a step may reveal; all of them where it is None.
        drawn: (R, L) the tokens that were drawn, for samplers that look at them.
    """

    ids: torch.LongTensor
    at: torch.Tensor
    config: PreTrainedConfig
    vocab_size: int | None = None
    hidden: torch.Tensor | None = None
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
    attention_mask: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    free: torch.Tensor | None = None
    drawn: torch.LongTensor | None = None
    scores: dict[str, Score] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_logits(cls, ids: torch.LongTensor, at: torch.Tensor, logits: torch.Tensor, config, **inputs) -> "Proposal":
        """The proposal of logits (R, L, V) that are there already."""
        hidden, vocab_size = logits[at], logits.shape[-1]
        return cls(ids, at, config, vocab_size, hidden, copy_of_logits, **inputs)

    @functools.cached_property
    def row_of(self) -> torch.LongTensor:
        """(N,) the row of every position."""
        return self.at.nonzero()[:, 0]

    @functools.cached_property
    def present(self) -> torch.LongTensor:
        """(R, L), 1 where a row has text and 0 at padding."""
        return torch.ones_like(self.ids) if self.attention_mask is None else self.attention_mask.long()

    @functools.cached_property
    def masked(self) -> torch.Tensor:
        """(R, L) bool, M(x_t)."""
        return self.present.bool() & (self.ids == self.config.mask_token_id)

    def numbers(self, within: torch.Tensor | None) -> torch.LongTensor:
        """Indices (n,) into the N positions of those inside `within` (R, L) bool, a subset of `at`; None: all."""
        chosen = self.at if within is None else within
        return chosen[self.at].nonzero().squeeze(-1)

    def select(self, rows: torch.Tensor) -> "Proposal":
        """The proposal of the rows chosen by a bool mask (R,)."""
        chosen = {name: getattr(self, name) for name in ("ids", "at", "attention_mask", "timesteps", "free", "drawn")}
        chosen = {name: None if x is None else x[rows] for name, x in chosen.items()}
        return replace(self, hidden=self.hidden[rows[self.row_of]], **chosen)

    def logits(self, numbers: torch.LongTensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Logits (n, V) of the positions `numbers` (n,), part by part; the first part may be empty."""
        size = max(1, MOST_LOGITS // self.vocab_size)
        for begin in range(0, max(len(numbers), 1), size):
            part = slice(begin, begin + size)
            yield part, self.logits_of(numbers[part])

    def logits_of(self, numbers: torch.LongTensor) -> torch.Tensor:
        """Logits (n, V): neither the mask nor ids without a token, then the user's processors.

        Those of all positions are kept where they are few, since planners ask for scores first and for tokens then.
        """
        if len(self.hidden) * self.vocab_size <= MOST_LOGITS:
            everywhere = len(numbers) == len(self.hidden)  # then no copy is made
            return self.all_logits if everywhere else self.all_logits[numbers]
        return self.processed(self.hidden[numbers], self.row_of[numbers])

    @functools.cached_property
    def all_logits(self) -> torch.Tensor:
        return self.processed(self.hidden, self.row_of)

    def processed(self, hidden: torch.Tensor, row_of: torch.LongTensor) -> torch.Tensor:
        logits = suppress_impossible(self.project(hidden), self.config)
        return self.processors(self.ids[row_of], logits) if self.processors else logits

    def sample(self, uniforms: torch.Tensor, within: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """k independent tokens at every position (of `within`) and their log-probabilities.

        Args:
            uniforms: (n, k) on [0, 1). within: (R, L) bool, the n positions; all unless given.

        Returns:
            Ids (n, k) and log-probabilities (n, k).

        Raises:
            ValueError: no token is left at a position, or NaN.
        """
        numbers = self.numbers(within)
        drawn = [sample_categorical(logits, uniforms[part]) for part, logits in self.logits(numbers)]
        tokens, log_probs = zip(*drawn, strict=True)
        return torch.cat(tokens), torch.cat(log_probs)

    def likeliest(self, within: torch.Tensor | None = None) -> torch.LongTensor:
        """The likeliest token (n,) at every position (of `within`), the lowest id where several are."""
        return torch.cat([likeliest_tokens(logits) for _, logits in self.logits(self.numbers(within))])

    def log_probs(self, tokens: torch.LongTensor) -> torch.Tensor:
        """log p_theta of k tokens (R, k, L) at every position: (R, k, L), 0 outside `at`."""
        return self.log_probs_within(tokens, self.at)

    def nats(self, text: torch.LongTensor, within: torch.Tensor | None = None) -> torch.Tensor:
        """-log p_theta of a text (R, L) at every position (of `within` (R, L) bool): (R, L), 0 elsewhere."""
        return -self.log_probs_within(text.unsqueeze(1), self.at if within is None else within)[:, 0]

    def log_probs_within(self, tokens: torch.LongTensor, within: torch.Tensor) -> torch.Tensor:
        """log p_theta of k tokens (R, k, L) at the n positions `within` (R, L) bool: (R, k, L), 0 elsewhere."""
        wanted = tokens.transpose(1, 2)[within].clamp(0, self.vocab_size - 1)  # (n, k)
        parts = []
        for part, logits in self.logits(self.numbers(within)):
            parts.append(logits.gather(-1, wanted[part]) - logits.logsumexp(-1, keepdim=True))
        values = torch.cat(parts)

        # (R, L, k): row and position first, as in `values`
        filled = values.new_zeros(*within.shape, values.shape[1])
        filled[within] = values
        return filled.transpose(1, 2).contiguous()

    def score(self, name: str) -> Score:
        """How sure the proposal is of every free position: `confidence`, `entropy` or `margin` (see confidence.py)."""
        if name not in self.scores:
            free = self.at if self.free is None else self.free
            parts = [Score.of(name, logits, self.dtype) for _, logits in self.logits(self.numbers(free))]
            self.scores[name] = Score.join(parts).spread(free)
        return self.scores[name]

    def entropy(self) -> torch.Tensor:
        """H_i = -sum_v p_i(v) log p_i(v) in nats: (R, L), +inf where nothing is free."""
        return -self.score("entropy").values

    def confidence(self) -> torch.Tensor:
        """c_i = max_v p_i(v): (R, L), 0 where nothing is free."""
        return self.score("confidence").values.sigmoid()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network, in which logits were made."""
        return self.hidden.dtype

    def guided(self, other: "Proposal", scale: float) -> "Proposal":
        """Classifier-free guidance: logits of this proposal and of `other` (without the prompt) with a `scale` of ours.

        log p = log p_other + scale (log p_this - log p_other) up to a constant (Ho and Salimans, arXiv 2207.12598;
        the convention of transformers, in which LLaDA's cfg_scale is scale - 1).
        """
        ours, theirs = self.project, other.project

        def project(both: torch.Tensor) -> torch.Tensor:
            this = ours(both[:, 0]).clamp_min(-LARGE)
            that = theirs(both[:, 1]).clamp_min(-LARGE)
            return that + scale * (this - that)

        return replace(self, hidden=torch.stack([self.hidden, other.hidden], dim=1), project=project)


class ProposingMixin:
    """p_theta(. | x_t) of models whose `forward` gives the logits of the clean tokens."""

    def propose(
        self,
        ids: torch.LongTensor,
        at: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        processors: LogitsProcessorList | None = None,
        **inputs,
    ) -> Proposal:
        """The proposal at the positions `at` (R, L) bool of rows `ids` (R, L) that are aligned left.

        The projection to the vocabulary is the largest part of a call when few positions matter: a network with
        `hidden_at` projects these alone. `inputs` are further arguments of the denoiser.
        """
        given = {"attention_mask": attention_mask, "timesteps": timesteps}
        network = self.projecting_network()
        processors = processors or LogitsProcessorList()
        if network is None:
            logits = self.text_logits(ids, **given, **inputs)
            return Proposal.of_logits(ids, at, logits, self.config, processors=processors, **given)
        return Proposal(
            ids=ids,
            at=at,
            config=self.config,
            vocab_size=network.config.vocab_size,
            hidden=network.hidden_at(at, ids, **given, **inputs),
            project=network.projection(),
            processors=processors,
            **given,
        )

    def projecting_network(self):
        """The network whose hidden states can be projected at few positions alone, None where there is none."""
        return self if hasattr(self, "hidden_at") else None

    def text_logits(self, input_ids: torch.LongTensor, attention_mask=None, timesteps=None, **inputs) -> torch.Tensor:
        """Logits (R, L, V) of rows that are aligned left, in which padding takes no part."""
        return self(input_ids=input_ids, attention_mask=attention_mask, timesteps=timesteps, **inputs).logits


def copy_of_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits (n, V) that may be changed in place, in at least float32."""
    return at_least_float32(logits).clone()
