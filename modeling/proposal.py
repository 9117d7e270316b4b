"""The proposal p_theta(. | x_t): the denoiser's distribution of the clean token, at few positions.

All that is known about it stands here: what the logits are made of, how many of them exist at a
time, which ids can never be drawn, the filters of the user, draws, log-probabilities and scores.

Shapes: R rows, L positions, N of these at which the proposal is wanted, n of the N, V vocabulary
(mask included), k draws.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from transformers import LogitsProcessorList, PreTrainedConfig

from .confidence import Score, likeliest_tokens
from .masked_diffusion import at_least_float32, check_tokens_left, inverse_cdf
from .network_facts import is_compiled
from .positions import Positions
from .vocabulary import suppress_impossible

# Logits that exist at a time: with their float64 CDF they take about 100 MB.
MOST_LOGITS = 2**23
# Logits are at least -LARGE where two of them are compared, so that their difference exists.
LARGE = 1e9


@dataclass
class Proposal:
    """p_theta(. | x_t) at N positions.

    Args:
        ids: (R, L) x_t.
        positions: the N positions, of which methods take a part as `within`.
        config: of the model, names the mask token and the ids without a token.
        vocab_size: V.
        hidden: (N, ...) what the logits are made of; None where no network was asked.
        project: the map from some rows of `hidden` to new logits (n, V) in at least float32.
        attention_mask: (R, L), 0 at padding; None where nothing is padding.
        timesteps: (R,) total noise sigma.
        processors: of the user, called as (ids (n, L), logits (n, V)).
        may_reveal: those positions that a step may reveal. Unless given, all of them.
        drawn: (R, L) the tokens that were drawn, for samplers that look at them.
    """

    ids: torch.LongTensor
    positions: Positions
    config: PreTrainedConfig
    vocab_size: int | None = None
    hidden: torch.Tensor | None = None
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
    attention_mask: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    may_reveal: Positions | None = None
    drawn: torch.LongTensor | None = None
    scores: dict[str, Score] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_logits(
        cls,
        ids: torch.LongTensor,
        at: Positions,
        logits: torch.Tensor,
        config: PreTrainedConfig,
        **inputs,
    ) -> "Proposal":
        """The proposal of logits (R, L, V) that exist already."""
        return cls(
            ids=ids,
            positions=at,
            config=config,
            vocab_size=logits.shape[-1],
            hidden=at.take(logits),
            project=copy_of_logits,
            **inputs,
        )

    @property
    def at(self) -> torch.Tensor:
        """(R, L) bool, the N positions."""
        return self.positions.flags

    @property
    def free(self) -> torch.Tensor:
        """(R, L) bool, the positions that a step may reveal."""
        return self.at if self.may_reveal is None else self.may_reveal.flags

    @functools.cached_property
    def present(self) -> torch.LongTensor:
        """(R, L), 1 where a row has text and 0 at padding."""
        if self.attention_mask is None:
            return torch.ones_like(self.ids)
        return self.attention_mask.long()

    @functools.cached_property
    def masked(self) -> torch.Tensor:
        """(R, L) bool, M(x_t)."""
        return self.present.bool() & (self.ids == self.config.mask_token_id)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network, in which logits were made."""
        return self.hidden.dtype

    def select(self, rows: torch.Tensor) -> "Proposal":
        """The proposal of the rows chosen by a bool mask (R,)."""
        of_rows = {}
        for name in ("ids", "attention_mask", "timesteps", "drawn"):
            values = getattr(self, name)
            of_rows[name] = None if values is None else values[rows]
        for name, flags in (("positions", self.at), ("may_reveal", self.free)):
            of_rows[name] = Positions(flags[rows])

        # The hidden states of the positions in these rows
        is_chosen = rows[self.positions.row_of]  # (N,) bool
        hidden = self.hidden[is_chosen]
        return replace(self, hidden=hidden, **of_rows)

    def numbers(self, within: Positions | None) -> torch.LongTensor:
        """The numbers (n,) among the N positions of those `within`, which is all of them if None."""
        within = self.positions if within is None else within
        return self.positions.numbers_of(within)

    def logits(self, numbers: torch.LongTensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Logits of the positions `numbers` (n,), in parts: (slice of the n, logits of these).

        The first part may be empty.
        """
        size = max(1, MOST_LOGITS // self.vocab_size)
        for begin in range(0, max(len(numbers), 1), size):
            part = slice(begin, begin + size)
            yield part, self.logits_of(numbers[part])

    def logits_of(self, numbers: torch.LongTensor) -> torch.Tensor:
        """Logits (n, V) of the positions `numbers` (n,), after the user's processors."""
        if len(self.hidden) * self.vocab_size > MOST_LOGITS:
            return self.processed(numbers)

        # Few logits are kept, since planners ask for scores first and for tokens afterwards
        if len(numbers) == len(self.hidden):
            return self.all_logits  # no copy
        return self.all_logits[numbers]

    @functools.cached_property
    def all_logits(self) -> torch.Tensor:
        """Logits (N, V) of all positions."""
        return self.processed(slice(None))

    def processed(self, numbers: torch.LongTensor | slice) -> torch.Tensor:
        """New logits (n, V) of some positions: the mask and ids without a token are impossible."""
        logits = self.project(self.hidden[numbers])
        logits = suppress_impossible(logits, self.config)

        # A processor sees x_t of the row of every position
        if self.processors:
            row_of = self.positions.row_of[numbers]
            logits = self.processors(self.ids[row_of], logits)
        return logits

    def sample(
        self,
        uniforms: torch.Tensor,
        within: Positions | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """k independent tokens at every position (of `within`) and their log-probabilities.

        Args:
            uniforms: (n, k) on [0, 1).
            within: the n positions. Unless given, all of them.

        Returns:
            Ids (n, k) and log-probabilities (n, k).

        Raises:
            ValueError: no token is left at a position, or NaN.
        """
        tokens = []
        log_probs = []
        for part, logits in self.logits(self.numbers(within)):
            tokens_of_part, log_probs_of_part = inverse_cdf(logits, uniforms[part])
            tokens.append(tokens_of_part)
            log_probs.append(log_probs_of_part)

        # Checked once for all parts, since the host waits for it
        log_probs = torch.cat(log_probs)
        check_tokens_left(log_probs == log_probs)  # NaN compares false
        return torch.cat(tokens), log_probs

    def likeliest(self, within: Positions | None = None) -> torch.LongTensor:
        """The likeliest token (n,) at every position (of `within`), the lowest id among equals."""
        parts = []
        for _, logits in self.logits(self.numbers(within)):
            parts.append(likeliest_tokens(logits))
        return torch.cat(parts)

    def log_probs(
        self,
        tokens: torch.LongTensor,
        within: Positions | None = None,
    ) -> torch.Tensor:
        """log p_theta of k tokens (R, k, L) at every position (of `within`).

        Returns:
            (R, k, L), 0 elsewhere.
        """
        within = self.positions if within is None else within
        # (n, k): any id will do for a mask, of which the logits may have no entry
        tokens = within.take(tokens.transpose(1, 2))
        tokens = tokens.clamp(0, self.vocab_size - 1)

        # log p(v) = l_v - log sum_u exp(l_u)
        parts = []
        for part, logits in self.logits(self.numbers(within)):
            of_tokens = logits.gather(-1, tokens[part])
            log_normalizer = logits.logsumexp(-1, keepdim=True)
            parts.append(of_tokens - log_normalizer)
        log_probs = torch.cat(parts)

        # (R, L, k): row and position first, as in `log_probs` (n, k)
        nothing = log_probs.new_zeros(*self.ids.shape, log_probs.shape[1])
        placed = within.put(nothing, log_probs)
        return placed.transpose(1, 2).contiguous()

    def nats(self, text: torch.LongTensor, within: Positions | None = None) -> torch.Tensor:
        """-log p_theta of a text (R, L) at every position (of `within`).

        Returns:
            (R, L), 0 elsewhere.
        """
        return -self.log_probs(text.unsqueeze(1), within)[:, 0]

    def score(self, name: str) -> Score:
        """How sure the proposal is of every free position: (R, L), -inf elsewhere.

        Args:
            name: `confidence`, `entropy` or `margin` (see confidence.py).
        """
        if name not in self.scores:
            # (n,) values and errors, scattered to (R, L)
            parts = []
            for _, logits in self.logits(self.numbers(self.may_reveal)):
                parts.append(Score.of(name, logits, self.dtype))
            self.scores[name] = Score.join(parts).scatter(self.free)
        return self.scores[name]

    def entropy(self) -> torch.Tensor:
        """H_i = -sum_v p_i(v) log p_i(v) in nats: (R, L), +inf where nothing is free."""
        return -self.score("entropy").values

    def confidence(self) -> torch.Tensor:
        """c_i = max_v p_i(v): (R, L), 0 where nothing is free."""
        return self.score("confidence").values.sigmoid()

    def guided(self, other: "Proposal", scale: float) -> "Proposal":
        """Classifier-free guidance by the proposal `other` of the same rows without their prompts.

        log p = log p_other + scale (log p_this - log p_other) up to a constant (Ho and Salimans,
        arXiv 2207.12598). This is the convention of transformers. LLaDA's cfg_scale is scale - 1.
        """
        project_this = self.project
        project_other = other.project

        def project(hidden: torch.Tensor) -> torch.Tensor:
            """Logits (n, V) of the two hidden states (n, 2, ...)."""
            # Finite, since inf - inf is NaN
            this = project_this(hidden[:, 0]).clamp_min(-LARGE)
            without_prompt = project_other(hidden[:, 1]).clamp_min(-LARGE)
            return without_prompt + scale * (this - without_prompt)

        both = torch.stack([self.hidden, other.hidden], dim=1)
        return replace(self, hidden=both, project=project)


class ProposingMixin:
    """p_theta(. | x_t) of models whose `forward` gives the logits of the clean tokens."""

    def propose(
        self,
        ids: torch.LongTensor,
        at: Positions | torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        processors: LogitsProcessorList | None = None,
        **inputs,
    ) -> Proposal:
        """The proposal at some positions of rows that are aligned left.

        The projection to the vocabulary is the largest part of a call when few positions matter: a
        network with `hidden_at` projects these alone.

        Args:
            ids: (R, L) x_t.
            at: the positions, or (R, L) bool.
            attention_mask: (R, L), 0 at padding.
            timesteps: (R,) total noise sigma.
            processors: of the user.
            inputs: further arguments of the denoiser.
        """
        at = Positions.of(at)
        processors = processors or LogitsProcessorList()
        conditions = {"attention_mask": attention_mask, "timesteps": timesteps}
        network = self.projecting_network()

        # Logits of all L positions, of which N are kept
        if network is None:
            logits = self.text_logits(ids, **conditions, **inputs)
            return Proposal.of_logits(
                ids,
                at,
                logits,
                self.config,
                processors=processors,
                **conditions,
            )

        # Hidden states of N positions, from which logits are made when they are asked for. The code
        # that came with an older checkpoint takes the mask (R, L)
        wanted = at if getattr(network, "takes_positions", False) else at.flags
        return Proposal(
            ids=ids,
            positions=at,
            config=self.config,
            vocab_size=network.config.vocab_size,
            hidden=network.hidden_at(wanted, ids, **conditions, **inputs),
            project=network.projection(),
            processors=processors,
            **conditions,
        )

    def projecting_network(self):
        """The network that can project few positions alone, None where there is none."""
        return self if hasattr(self, "hidden_at") and not is_compiled(self) else None

    def text_logits(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Logits (R, L, V) of rows that are aligned left, in which padding takes no part."""
        output = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            timesteps=timesteps,
            **inputs,
        )
        return output.logits


def copy_of_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits (n, V) that may be changed in place, in at least float32."""
    return at_least_float32(logits).clone()
