"""p_AR(. | x_<i) of a causal language model, for texts that grow from call to call.

The key/value cache of the model is kept, and rolled back to what the next texts have in common with
those that were read. Shapes: R rows, L positions, C columns that the model reads, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .causal_log_probs import TokenScorer, hidden_size_of
from .causal_texts import StartToken
from .configuration_edlm import EDLMConfig
from .masked_diffusion import at_least_float32
from .network_facts import on_device_of
from .prefix_cache import keep_columns, select_rows
from .vocabulary import not_emitted


@dataclass(frozen=True)
class NextTokens:
    """p_AR(. | x_<i) at consecutive positions of R texts.

    Args:
        features: (R, C, ...) of the last columns that the model has read.
        first: (R,) the column of the first position.
        logits_of: the map from features (N, ...) to logits (N, V).
    """

    features: torch.Tensor
    first: torch.LongTensor
    logits_of: Callable[[torch.Tensor], torch.Tensor]

    def logits(self, rows: torch.LongTensor, number: int) -> torch.Tensor:
        """Logits (N, V) of some `rows` (N,) at their position `number`, counted from 0."""
        rows = rows.to(self.first.device)
        columns = self.first[rows] + number
        return self.logits_of(self.features[rows, columns])

    def states(self, number: torch.LongTensor) -> torch.Tensor:
        """Features (R, ...) of every row at its position `number` (R,)."""
        rows = torch.arange(len(self.first), device=self.first.device)
        columns = self.first + number.to(self.first.device)
        return self.features[rows, columns]


@dataclass(frozen=True)
class Reading:
    """What a model has read.

    Args:
        rows: (R,) the rows of the batch, in ascending order.
        input_ids: (R, C).
        cache: of all C columns.
    """

    rows: torch.LongTensor
    input_ids: torch.LongTensor
    cache: object


class AutoregressiveTarget:
    """The distribution of a causal language model over the tokens that the denoiser can emit.

    Args:
        causal_lm: the model.
        config: of the composite.
        start_token: the start token of the model for rows with some first tokens (R,), None where
            it has none (`AutoregressiveEnergy.start_token`).
    """

    def __init__(
        self,
        causal_lm: nn.Module,
        config: EDLMConfig,
        start_token: Callable[[torch.LongTensor], StartToken | None],
    ):
        self.causal_lm = causal_lm
        self.config = config
        self.start_token = start_token

        # Made by `prepare`
        self.scorer: TokenScorer | None = None
        self.project: Callable | None = None
        self.vocab_size: int | None = None

        self.last: Reading | None = None

    @property
    def hidden_size(self) -> int | None:
        """Of the states, None where these are logits."""
        return hidden_size_of(self.causal_lm)

    def read(
        self,
        rows: torch.LongTensor,
        ids: torch.LongTensor,
        window: torch.Tensor,
        given: torch.Tensor,
    ) -> NextTokens:
        """p_AR(. | x_<i) at the positions `window`, in one call of the model.

        Args:
            rows: (R,) the rows of the batch, in ascending order.
            ids: (R, L) texts that are aligned left, with tokens up to the last position of the
                window.
            window: (R, L) bool, the next positions of every row.
            given: (R,) bool, whether the first token of a row belongs to its prompt.

        Raises:
            ValueError: the model has no start token for a text from nothing, lacks tokens of the
                denoiser, or does not read texts that long.
        """
        input_ids, first, end = self.columns(ids, window, given)
        rows, input_ids, first = on_device_of(self.causal_lm, rows, input_ids, first)
        self.scorer.check_length(end)

        # 1. What the model has read before, up to the first column that is needed
        num_needed = end - int(first.min())
        begin = 0
        cache = None
        if self.last is not None:
            may_be_cached = input_ids[:, : end - num_needed]
            begin, cache = rolled_back(self.last, rows, may_be_cached)

        # 2. The rest of the columns, in one call
        text_length = input_ids.shape[1]
        features, cache = self.scorer.read_on(
            input_ids[:, begin:end],
            cache,
            text_length,
            num_last=num_needed,
        )

        # Without a cache the next call reads its texts as a whole
        self.last = None
        if cache is not None:
            self.last = Reading(rows, input_ids[:, :end], cache)

        def logits_of(features: torch.Tensor) -> torch.Tensor:
            return self.logits(features).to(ids.device)

        return NextTokens(features, first - first.min(), logits_of)

    def prepare(self, vocab_size: int, text_length: int) -> None:
        """Make the reader of the model, and its map from features to logits, before the first call.

        Args:
            vocab_size: V of the denoiser.
            text_length: of the longest text that will be read.

        Raises:
            ValueError: the model does not read texts that long.
        """
        if self.scorer is not None:
            return
        absent = self.config.absent_token_ids
        never_emitted = not_emitted(vocab_size, self.config.mask_token_id, absent)
        self.scorer = TokenScorer(self.causal_lm, never_emitted)
        self.project = self.causal_lm.projection() if self.scorer.has_trunk else at_least_float32
        self.vocab_size = vocab_size

        # The last token of a text is only predicted
        self.scorer.check_length(text_length - 1)

    def columns(
        self,
        ids: torch.LongTensor,
        window: torch.Tensor,
        given: torch.Tensor,
    ) -> tuple[torch.LongTensor, torch.LongTensor, int]:
        """What the model reads (R, L), the column (R,) that predicts the first position, and the end.

        The column c predicts the token c of a text after a start token, else the token c + 1.
        """
        # 1. The start token goes in front, unless the prompt begins with it
        mask_token_id = self.config.mask_token_id
        first_tokens = torch.where(given, ids[:, 0], mask_token_id)
        start = self.start_token(first_tokens)
        if start is None:
            if bool(window[:, 0].any()):
                raise ValueError(
                    "The autoregressive energy model has no bos_token_id, so it gives no distribution of the first "
                    "token of a text. Give a prompt, or set energy_model.config.bos_token_id if it has one."
                )
            start = StartToken(0, torch.zeros_like(given))
        needed = start.needed

        # 2. <start> x_0 x_1 ... or x_0 x_1 ... Any id will do for the masks, which come last.
        shifted = nn.functional.pad(ids[:, :-1], (1, 0), value=start.token_id)
        input_ids = torch.where(needed.unsqueeze(1), shifted, ids)
        input_ids = input_ids.masked_fill(input_ids == mask_token_id, 0)

        # 3. The columns of the window
        first = window.long().argmax(-1) - (~needed).long()
        end = int((first + window.sum(-1)).max())
        return input_ids, first, end

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of features (N, ...), -inf at the ids that the denoiser cannot emit.

        Raises:
            ValueError: the model has no row for an id that the denoiser can emit.
        """
        logits = self.project(features)
        num_rows = logits.shape[-1]
        excluded = self.scorer.excluded_rows(num_rows, logits.device)
        logits = logits.masked_fill(excluded, -torch.inf)

        # Rows that the denoiser does not have are left out, and those that the model lacks put in
        return nn.functional.pad(logits, (0, self.vocab_size - num_rows), value=-torch.inf)


def rolled_back(
    last: Reading,
    rows: torch.LongTensor,
    input_ids: torch.LongTensor,
) -> tuple[int, object | None]:
    """The number of leading columns that all rows have in common with the last reading, and their cache.

    Args:
        rows: (R,) in ascending order.
        input_ids: (R, n) the columns that may come from the cache.

    Returns:
        0 and None where there is nothing in common.
    """
    # 1. The rows among those of the last reading
    last_index = len(last.rows) - 1
    chosen = torch.searchsorted(last.rows, rows).clamp_max(last_index)
    if not torch.equal(last.rows[chosen], rows):
        return 0, None

    # 2. The columns up to the first difference of any row
    width = min(input_ids.shape[1], last.input_ids.shape[1])
    is_same = last.input_ids[chosen, :width] == input_ids[:, :width]
    same_in_all = is_same.all(0)  # (n,)
    num_same = int(same_in_all.long().cumprod(0).sum())
    if num_same == 0:
        return 0, None

    # 3. Their cache
    cache = last.cache
    if len(rows) < len(last.rows):
        cache = select_rows(cache, chosen)
    return num_same, keep_columns(cache, num_same)
