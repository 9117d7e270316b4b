"""Log-probabilities log p_AR(x_i | x_<i) of a causal language model, for autoregressive energies.

EDLM, section 4.1. Shapes: B rows, k candidates per row, L positions, H hidden, V vocabulary.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from .causal_texts import CausalTexts, Columns, StartToken
from .devices import send
from .masked_diffusion import at_least_float32
from .mdlm_pretrained import is_of_transformers
from .network_facts import accepts, counts_from_padding, logits_of, longest_text, on_device_of
from .positions import Positions
from .prefix_cache import (
    LONGEST_TEXT,
    cache_argument,
    continues_exactly,
    is_ordinary,
    longest_text_with_fixed_frequencies,
    returned_cache,
    select_rows,
)
from .projection import is_plain_linear, linear_log_probs, projected_log_probs

# Fewer shared columns than this are recomputed: a second pass would cost more than it saves.
SHORTEST_SHARED_PREFIX = 16


def autoregressive_log_probs(
    causal_lm: nn.Module,
    candidate_ids: torch.LongTensor,
    scored: torch.Tensor,
    never_emitted: torch.Tensor,
    start: StartToken | None = None,
    attention_mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """log p_AR(x_i | x_<i) of the scored tokens, normalised over all that the denoiser can emit.

    The inputs may stand on another device than the model. The result stands where they do.

    The model reads every row as [start token?] + text, aligned left. It needs no attention mask:
    the padding comes after the text, and rows cannot disturb each other. The first token of a row
    without start token is context and counts 0. Leading tokens in which all candidates of a row
    agree are read once per row, through the cache of the model where that is exact.

    Args:
        causal_lm: called as `causal_lm(input_ids=..., attention_mask=None)`, returns `.logits`.
        candidate_ids: (B, k, L), tokens of the model up to the last scored position.
        scored: (B, L) bool, the positions whose log-probabilities are wanted.
        never_emitted: (V,) bool, the ids that the denoiser cannot emit, of the V that it has.
        start: None for a model without one.
        attention_mask: (B, L), 0 at padding on either side.
        chunk_size: candidates per call, bounded by memory unless given.

    Returns:
        (B, k, L) log-probabilities in at least float32, 0 where not scored.

    Raises:
        ValueError: the denoiser can emit an id for which the model has no row, or the text is too
            long for the model.
    """
    batch, k, _ = candidate_ids.shape
    device_of_inputs = candidate_ids.device

    # 1. The texts as the model reads them
    real = torch.ones_like(scored) if attention_mask is None else attention_mask.bool()
    if start is None:
        nowhere = torch.zeros(batch, dtype=torch.bool, device=scored.device)
        start = StartToken(0, nowhere)
    candidate_ids, scored, real, needed = on_device_of(causal_lm, candidate_ids, scored, real, start.needed)
    start = StartToken(start.token_id, needed)
    texts = CausalTexts.align(candidate_ids, scored, real, start)

    # The columns after the last one that predicts anything need not be read
    device = candidate_ids.device
    predicts, is_shared = texts.read()
    end = count_up_to_last(predicts.any(0))
    if end == 0:
        return torch.zeros(candidate_ids.shape, dtype=torch.float32, device=device_of_inputs)
    scorer = TokenScorer(causal_lm, never_emitted.cpu())
    scorer.check_length(end)

    # 2. The columns that all candidates share, once per row
    log_probs = []
    begin = 0
    cache = None
    shared = 0
    if k > 1:
        num_shared = int(is_shared.long().cumprod(0).sum())
        shared = min(num_shared, end)
    if shared >= SHORTEST_SHARED_PREFIX and (shared == end or scorer.may_continue(end, device)):
        prefix = texts.shared_columns(predicts, shared)
        of_prefix, cache = scorer.score_prefix(prefix, text_length=end)
        if shared == end or cache is not None:
            begin = shared
            log_probs.append(of_prefix.unsqueeze(1).expand(-1, k, -1))  # (B, k, shared)

    # 3. The other columns of every candidate, or all of them
    if begin < end:
        columns = texts.columns(predicts, begin, end)
        row_of_candidate = torch.arange(batch, device=device).repeat_interleave(k)  # (B k,)
        size = chunk_size or scorer.affordable_rows(end - begin)

        chunks = []
        for first in range(0, batch * k, size):
            candidates = slice(first, first + size)
            of_rows = None
            if cache is not None:
                of_rows = select_rows(cache, row_of_candidate[candidates])
            chunks.append(scorer.score(columns.select(candidates), of_rows))
        log_probs.append(torch.cat(chunks).view(batch, k, -1))

    # 4. From columns (B, k, end) to positions (B, k, L)
    by_column = torch.cat(log_probs, dim=-1)
    return texts.by_position(by_column).to(device_of_inputs)


def count_up_to_last(flags: torch.Tensor) -> int:
    """The number of entries of (L,) bool up to the last True one."""
    numbers = flags.nonzero()
    return int(numbers[-1]) + 1 if len(numbers) else 0


def has_trunk(causal_lm: nn.Module) -> bool:
    """Whether a causal model is one of ours, whose hidden states can be read without logits."""
    return hasattr(causal_lm, "projection")


def hidden_size_of(causal_lm: nn.Module | None) -> int | None:
    """The size of the hidden states of a causal model that drafts can read, None where they cannot."""
    if causal_lm is None or not has_trunk(causal_lm):
        return None
    return causal_lm.config.hidden_size


class TokenScorer:
    """Scores tokens under a causal language model without the logits of a whole batch.

    Args:
        causal_lm: a causal language model. One with `projection` (ours) never builds logits that
            are not asked for.
        never_emitted: (V,) bool, the ids that the denoiser cannot emit. The softmax runs over the
            others alone.
    """

    # Activations of one call, or logits of models of others
    HIDDEN_BYTES = 2**28
    # Logits of one projection. Blocks below 32 MB fragment the heap of glibc, which keeps them.
    LOGIT_BYTES = 2**26

    def __init__(self, causal_lm: nn.Module, never_emitted: torch.Tensor):
        self.causal_lm = causal_lm
        self.has_trunk = has_trunk(causal_lm)
        self.network = causal_lm.backbone if self.has_trunk else causal_lm
        self.never_emitted = never_emitted

    def affordable_rows(self, length: int) -> int:
        """The number of rows of `length` tokens that one call may have."""
        # About 32 H numbers per token live at once in a block, and 3 V where logits are made
        config = getattr(self.causal_lm, "config", None)
        if self.has_trunk:
            floats_per_token = 32 * getattr(config, "hidden_size", 1024)
        else:
            floats_per_token = 3 * getattr(config, "vocab_size", 1024)
        bytes_per_row = 4 * floats_per_token * length
        return max(1, self.HIDDEN_BYTES // bytes_per_row)

    def score(self, columns: Columns, cache: Cache | None = None) -> torch.Tensor:
        """log p of the targets (N, n), 0 where they are not wanted.

        Args:
            cache: of the columns before these ones.
        """
        features, _ = self.read(columns.input_ids, cache)
        return self.log_probs_of(columns, features)

    def score_prefix(self, columns: Columns, text_length: int) -> tuple[torch.Tensor, Cache | None]:
        """log p of the targets (N, n) as in `score`, and the cache if texts can go on from it.

        Args:
            columns: the first ones of texts of `text_length` columns.
        """
        if text_length == columns.input_ids.shape[1]:
            return self.score(columns), None
        features, cache = self.read_on(columns.input_ids, None, text_length)
        return self.log_probs_of(columns, features), cache

    def read_on(
        self,
        input_ids: torch.LongTensor,
        cache: Cache | None,
        text_length: int,
        num_last: int | None = None,
    ) -> tuple[torch.Tensor, Cache | None]:
        """Features of ids (N, n) as in `read`, and the cache if texts can go on from it.

        Args:
            cache: of the columns before these ones, None for no columns.
            text_length: the number of columns of whole texts.
            num_last: how many of the last columns are wanted. All unless given.
        """
        # Columns that the cache has to have afterwards
        rows, length = input_ids.shape
        num_before = 0 if cache is None else cache.get_seq_length()
        num_read = num_before + length
        keep_cache = self.may_continue(text_length, input_ids.device)
        features, cache = self.read(input_ids, cache, keep_cache, num_last)

        if keep_cache and not is_ordinary(cache, rows, num_read, text_length):
            cache = None
            # The next text of this length is read as a whole at once. In training mode there may
            # be no cache because activations are checkpointed: nothing is learned from that.
            if not self.network.training:
                LONGEST_TEXT[self.network] = text_length - 1
        return features, cache

    def read(
        self,
        input_ids: torch.LongTensor,
        cache: Cache | None = None,
        keep_cache: bool = False,
        num_last: int | None = None,
    ) -> tuple[torch.Tensor, Cache | None]:
        """Features that predict the next tokens of ids (N, n), and the cache if it is to be kept.

        Args:
            cache: of the columns before these ones.
            num_last: how many of the last columns are wanted. All unless given.

        Returns:
            Hidden states (N, n, H) of our models, logits (N, n, V) of others. A cache or None.
        """
        arguments = {"input_ids": input_ids, "attention_mask": None}
        arguments.update(as_output_object(self.network))
        if accepts(self.network, "use_cache"):
            arguments["use_cache"] = keep_cache or cache is not None
        if cache is not None:
            arguments[cache_argument(self.network)] = cache
        if num_last is not None and accepts(self.network, "logits_to_keep"):
            arguments["logits_to_keep"] = num_last

        # A model may give more columns than it was asked for
        output = self.network(**arguments)
        features = output.last_hidden_state if self.has_trunk else logits_of(self.network, output)
        if num_last is not None:
            features = features[:, -num_last:]
        return features, returned_cache(output) if keep_cache else None

    def log_probs_of(self, columns: Columns, features: torch.Tensor) -> torch.Tensor:
        """log p of the targets (N, n) by the features at their columns, 0 where not wanted."""
        # Features and targets at the wanted columns alone, (m, H) and (m,)
        targets = columns.targets
        wanted = Positions.known(columns.predicts, targets.device)
        log_probs = self.target_log_probs(wanted.take(features), wanted.take(targets))

        # Back in their places, (N, n)
        nothing = torch.zeros(targets.shape, dtype=log_probs.dtype, device=targets.device)
        return wanted.put(nothing, log_probs)

    def target_log_probs(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets` (N,) by the features of `read` at the columns that predict them."""
        head = self.causal_lm.get_output_embeddings() if self.has_trunk else None
        if is_plain_linear(head):
            excluded = self.excluded_rows(len(head.weight), targets.device)
            return linear_log_probs(features, head, targets, excluded)

        # Any other head has to be called, and features of other models are logits already.
        # No feature at all tells the number of rows.
        project = self.causal_lm.projection() if self.has_trunk else at_least_float32
        rows = project(features[:0]).shape[-1]
        excluded = self.excluded_rows(rows, targets.device)
        size = max(1, self.LOGIT_BYTES // (4 * rows))
        return projected_log_probs(features, project, targets, excluded, size)

    def excluded_rows(self, rows: int, device: torch.device) -> torch.Tensor:
        """(rows,) bool: the rows of the model's vocabulary that the denoiser cannot emit.

        Raises:
            ValueError: an id that it can emit has no row.
        """
        # The highest id that the denoiser can emit
        emitted = (~self.never_emitted).nonzero()
        highest = int(emitted.max()) if len(emitted) else -1
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model "
                f"has only {rows} rows. Use a causal language model of the same vocabulary."
            )

        # Rows that the denoiser does not have are left out too.
        known = self.never_emitted[:rows]
        excluded = nn.functional.pad(known, (0, rows - len(known)), value=True)
        return send(excluded, device)

    def check_length(self, length: int) -> None:
        """Raise ValueError if the model cannot read texts of so many tokens."""
        limit = longest_text(self.causal_lm)
        if limit is not None and length > limit:
            raise ValueError(
                f"The autoregressive energy model reads at most {limit} tokens, but the text has "
                f"{length}. Use a causal language model as long as the denoiser's texts, or "
                "shorter texts."
            )

    def may_continue(self, text_length: int, device: torch.device) -> bool:
        """Whether the model may read the beginning of such a text first, then go on from its cache.

        Caches of models of transformers and of ours are checked where they are used. Models of
        others are measured once. A model that counts positions by the tokens that are not padding
        cannot go on from a cache, which does not say how many these were.
        """
        # Found out once for a network
        if self.network not in LONGEST_TEXT:
            counts_tokens = counts_from_padding(getattr(self.network, "config", None))
            exact = cache_argument(self.network) is not None and not counts_tokens
            if exact and not is_of_transformers(self.network):
                exact = continues_exactly(self.read, self.random_texts(device))
            limit = longest_text_with_fixed_frequencies(self.network) if exact else 0
            LONGEST_TEXT[self.network] = limit
        return text_length <= LONGEST_TEXT[self.network]

    def random_texts(self, device: torch.device) -> torch.LongTensor:
        """Two texts of random tokens, as long as the shortest prefix that is shared."""
        shape = (2, SHORTEST_SHARED_PREFIX)
        generator = torch.Generator().manual_seed(0)
        emitted = (~self.never_emitted).nonzero().squeeze(-1)
        chosen = torch.randint(len(emitted), shape, generator=generator, device="cpu")
        return emitted[chosen].to(device)


def as_output_object(module: nn.Module) -> dict[str, bool]:
    """`return_dict=True` for models of transformers and ours, which may return tuples."""
    return {"return_dict": True} if is_of_transformers(module) else {}
