"""The autoregressive energies read log p_AR(x_i | x_<i) of a causal language model (EDLM, section 4.1).

Shapes: B rows, k candidates per row, L positions, H hidden, V vocabulary.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache

from .masked_diffusion import at_least_float32
from .modeling_mdlm import MDLMPreTrainedModel
from .network_facts import longest_text
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


@dataclass(frozen=True)
class StartToken:
    """The token `token_id` that is put in front of the rows where it is `needed`, (B,) bool."""

    token_id: int
    needed: torch.Tensor


def autoregressive_log_probs(
    causal_lm: nn.Module,
    candidate_ids: torch.LongTensor,
    scored: torch.Tensor,
    never_emitted: torch.Tensor,
    start: StartToken | None = None,
    attention_mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """log p_AR(x_i | x_<i) of the scored tokens, normalised over what the denoiser can emit.

    Every row is fed as [start token?] + its text, aligned left: a causal model needs no attention mask for what comes
    after it, and rows cannot disturb each other. A row without start token has its first token as context: it counts 0.
    Leading tokens in which all candidates of a row agree run once per row, through the cache of a model where that is
    exact.

    Args:
        causal_lm: called as `causal_lm(input_ids=..., attention_mask=None)`, returns `.logits`.
        candidate_ids: (B, k, L), tokens of the model up to the last scored position.
        scored: (B, L) bool, the positions whose log-probabilities are wanted.
        never_emitted: (V,) bool, the ids that the denoiser cannot emit, of the V that it has.
        start: None for a model without one.
        attention_mask: (B, L), 0 at padding on either side.
        chunk_size: candidates per call; bounded by memory unless given.

    Returns:
        (B, k, L) log-probabilities in at least float32, 0 where not scored.

    Raises:
        ValueError: the denoiser can emit an id for which the model has no row, or the text is too long for the model.
    """
    batch, k, _ = candidate_ids.shape
    real = torch.ones_like(scored) if attention_mask is None else attention_mask.bool()
    clean = candidate_ids.masked_fill(~real.unsqueeze(1), 0)
    if start is None:
        start = StartToken(0, torch.zeros(batch, dtype=torch.bool, device=scored.device))
    texts = CausalTexts.align(clean, scored & real, real, start)

    end = texts.end
    if end == 0:
        return torch.zeros(candidate_ids.shape, device=candidate_ids.device)
    scorer = TokenScorer(causal_lm, never_emitted.cpu())
    scorer.check_length(end)
    shared = min(texts.shared, end) if k > 1 else 0

    # 1. What the candidates share, once per row
    begin, cache, parts = 0, None, []
    if shared >= SHORTEST_SHARED_PREFIX and (shared == end or scorer.may_continue(end, scored.device)):
        log_probs, cache = scorer(*texts.columns_of_rows(0, shared), text_length=end)
        if shared == end or cache is not None:
            begin = shared
            parts.append(log_probs.unsqueeze(1).expand(-1, k, -1))

    # 2. The rest, or all of it, of every candidate
    if begin < end:
        row_of = torch.arange(batch, device=scored.device).repeat_interleave(k)
        inputs, predicts, targets = texts.columns_of_candidates(begin, end)
        chunks = []
        size = chunk_size or scorer.affordable_rows(end - begin)
        for chosen in torch.arange(batch * k, device=scored.device).split(size):
            of_prefix = None if cache is None else select_rows(cache, row_of[chosen])
            log_probs, _ = scorer(inputs[chosen], predicts[row_of[chosen]], targets[chosen], of_prefix)
            chunks.append(log_probs)
        parts.append(torch.cat(chunks).view(batch, k, -1))
    return texts.by_position(torch.cat(parts, dim=-1))


@dataclass(frozen=True)
class CausalTexts:
    """Texts as a causal model reads them: [start token?] + text, aligned left.

    Args:
        inputs, targets: (B, k, L) what a column reads, and the text token that it predicts.
        predicts: (B, L) bool, the columns whose predictions are wanted.
        columns: (B, L) the column that predicts the c-th token of the text, -1 for none.
        counted: (B, L) bool, whether the c-th token of the text is wanted.
        order: (B, L) the position in the given rows at which the c-th token of the text stands.
    """

    inputs: torch.LongTensor
    targets: torch.LongTensor
    predicts: torch.Tensor
    columns: torch.LongTensor
    counted: torch.Tensor
    order: torch.LongTensor

    @classmethod
    def align(
        cls,
        ids: torch.LongTensor,
        scored: torch.Tensor,
        real: torch.Tensor,
        start: StartToken,
    ) -> "CausalTexts":
        """From rows `ids` (B, k, L) with padding where not `real` (B, L) bool; `scored` (B, L) bool."""
        k, length = ids.shape[1:]
        order = (~real).long().argsort(dim=-1, stable=True)
        text = ids.gather(2, order.unsqueeze(1).expand(-1, k, -1))

        # With a start token column c predicts token c of the text, without one token c + 1.
        started = start.needed.unsqueeze(1)
        columns = torch.arange(length, device=ids.device) - (~started).long()
        counted = scored.gather(1, order) & (columns >= 0)
        after_start = nn.functional.pad(text[..., :-1], (1, 0), value=start.token_id)
        return cls(
            inputs=torch.where(started.unsqueeze(1), after_start, text),
            targets=torch.where(started.unsqueeze(1), text, nn.functional.pad(text[..., 1:], (0, 1))),
            predicts=torch.where(started, counted, nn.functional.pad(counted[:, 1:], (0, 1))),
            columns=columns,
            counted=counted,
            order=order,
        )

    @property
    def shared(self) -> int:
        """How many leading columns read and predict the same in all candidates of every row."""
        same = (self.inputs == self.inputs[:, :1]) & (self.targets == self.targets[:, :1])
        leading = same.all(1).all(0).long().cumprod(0)
        return int(leading.sum())

    @property
    def end(self) -> int:
        """How many columns are needed."""
        used = self.predicts.any(0).nonzero()
        return int(used.max()) + 1 if len(used) else 0

    def columns_of_rows(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, predicted columns and targets of some columns that all candidates of a row share, (B, n) each."""
        return self.inputs[:, 0, begin:end], self.predicts[:, begin:end], self.targets[:, 0, begin:end]

    def columns_of_candidates(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs (B k, n), predicted columns (B, n) and targets (B k, n) of some columns of every candidate."""
        inputs, targets = self.inputs.flatten(0, 1), self.targets.flatten(0, 1)
        return inputs[:, begin:end], self.predicts[:, begin:end], targets[:, begin:end]

    def by_position(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the first columns (B, k, <= L) at the positions of the given rows (B, k, L)."""
        batch, k, length = self.inputs.shape
        padded = nn.functional.pad(log_probs, (0, length - log_probs.shape[-1]))
        of_tokens = padded.gather(2, self.columns.clamp_min(0).unsqueeze(1).expand(batch, k, -1))
        of_tokens = torch.where(self.counted.unsqueeze(1), of_tokens, 0)
        return torch.zeros_like(of_tokens).scatter(2, self.order.unsqueeze(1).expand(-1, k, -1), of_tokens)


class TokenScorer:
    """Scores tokens under a causal language model without holding the logits of a whole batch.

    Args:
        causal_lm: a causal language model; one with `projection` (ours) never builds logits that are not asked for.
        not_emitted: (V,) bool, the ids that the denoiser cannot emit; the softmax runs over the others alone.
    """

    HIDDEN_BYTES = 2**28  # activations, or logits of foreign models, per call
    LOGIT_BYTES = 2**26  # logits per projection; smaller blocks fragment the heap of glibc (below 32 MB it keeps them)

    def __init__(self, causal_lm: nn.Module, not_emitted: torch.Tensor):
        self.causal_lm = causal_lm
        self.has_trunk = hasattr(causal_lm, "projection")
        self.network = causal_lm.backbone if self.has_trunk else causal_lm
        self.not_emitted = not_emitted

    def affordable_rows(self, length: int) -> int:
        """Rows of `length` tokens that one call may have."""
        config = getattr(self.causal_lm, "config", None)
        if self.has_trunk:
            floats = 32 * getattr(config, "hidden_size", 1024)
        else:
            floats = 3 * getattr(config, "vocab_size", 1024)
        return max(1, self.HIDDEN_BYTES // (4 * floats * length))

    def __call__(
        self,
        input_ids: torch.LongTensor,
        scored: torch.Tensor,
        targets: torch.LongTensor,
        cache: Cache | None = None,
        text_length: int = 0,
    ) -> tuple[torch.Tensor, Cache | None]:
        """log p of `targets` (N, L) where `scored` (N, L), else 0, and the cache if texts can go on from it.

        Args:
            cache: of what comes before `input_ids` (N, L).
            text_length: of the text that `input_ids` begin, if they are to be gone on from.
        """
        keep_cache = text_length > input_ids.shape[1]
        features, cache = self.read(input_ids, cache, keep_cache)
        log_probs = self.score(features[scored], targets[scored])
        result = torch.zeros(targets.shape, dtype=log_probs.dtype, device=targets.device)
        result[scored] = log_probs
        if keep_cache and not is_ordinary(cache, *input_ids.shape, text_length):
            cache = None
            if not self.network.training:  # where checkpointing may be on, and no cache is made
                LONGEST_TEXT[self.network] = text_length - 1  # the next such text is read as a whole at once
        return result, cache

    def read(
        self, input_ids: torch.LongTensor, cache: Cache | None = None, keep_cache: bool = False
    ) -> tuple[torch.Tensor, Cache | None]:
        """What predicts the next tokens of ids (N, L): hidden states (N, L, H), or logits (N, L, V) of other models."""
        arguments = {"input_ids": input_ids, "attention_mask": None} | as_output_object(self.network)
        if accepts(self.network, "use_cache"):
            arguments["use_cache"] = keep_cache or cache is not None
        if cache is not None:
            arguments[cache_argument(self.network)] = cache
        output = self.network(**arguments)
        features = output.last_hidden_state if self.has_trunk else output.logits
        return features, returned_cache(output) if keep_cache else None

    def may_continue(self, text_length: int, device: torch.device) -> bool:
        """Whether the model may read the beginning of such a text first and go on from its cache.

        Caches of models of transformers and of ours are looked at where they are used. Others are measured once.
        """
        if self.network not in LONGEST_TEXT:
            exact = cache_argument(self.network) is not None
            if exact and not is_of_transformers(self.network):
                exact = continues_exactly(self.read, self.texts(device))
            LONGEST_TEXT[self.network] = longest_text_with_fixed_frequencies(self.network) if exact else 0
        return text_length <= LONGEST_TEXT[self.network]

    def texts(self, device: torch.device) -> torch.LongTensor:
        """Two texts of random tokens, as long as the shortest prefix that is shared."""
        shape = 2, SHORTEST_SHARED_PREFIX
        generator = torch.Generator().manual_seed(0)
        emitted = (~self.not_emitted).nonzero().squeeze(-1)
        return emitted[torch.randint(len(emitted), shape, generator=generator, device="cpu")].to(device)

    def score(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets` (N,) by the features of `read` at the positions that predict them: (N,)."""
        head = self.causal_lm.get_output_embeddings() if self.has_trunk else None
        if is_plain_linear(head):
            excluded = self.excluded(len(head.weight), targets.device)
            return linear_log_probs(features, head, targets, excluded)

        project = self.causal_lm.projection() if self.has_trunk else at_least_float32
        rows = project(features[:0]).shape[-1]
        excluded = self.excluded(rows, targets.device)
        return projected_log_probs(features, project, targets, excluded, max(1, self.LOGIT_BYTES // (4 * rows)))

    def excluded(self, rows: int, device: torch.device) -> torch.Tensor:
        """(rows,) bool: the rows of the model's vocabulary that the denoiser cannot emit.

        Raises:
            ValueError: a row is missing for what it can emit.
        """
        emitted = (~self.not_emitted).nonzero()
        highest = int(emitted.max()) if len(emitted) else -1
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows. "
                "Use a causal language model of the same vocabulary."
            )
        known = self.not_emitted[:rows]
        return nn.functional.pad(known, (0, rows - len(known)), value=True).to(device)

    def check_length(self, length: int) -> None:
        limit = longest_text(self.causal_lm)
        if limit is not None and length > limit:
            raise ValueError(
                f"The autoregressive energy model reads at most {limit} tokens, but the text has {length}. Use a "
                "causal language model as long as the denoiser's texts, or shorter texts."
            )


def is_of_transformers(module: nn.Module) -> bool:
    """Whether the class of a module is one of transformers or of this package, and not of somebody else's code."""
    return isinstance(module, MDLMPreTrainedModel) or type(module).__module__.startswith("transformers.")


def as_output_object(module: nn.Module) -> dict[str, bool]:
    """`return_dict=True` for models of transformers and ours, whose configuration may ask for tuples."""
    return {"return_dict": True} if is_of_transformers(module) else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward of `module` has a parameter called `name`."""
    return name in inspect.signature(module.forward).parameters
