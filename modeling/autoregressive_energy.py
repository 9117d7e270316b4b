"""The autoregressive energies read log p_AR(x_i | x_<i) of a causal language model (EDLM, section 4.1).

Shapes: B rows, k candidates per row, L positions, V vocabulary.
"""

import copy
import inspect

import torch
from torch import nn
from transformers.cache_utils import Cache

from .masked_diffusion import at_least_float32
from .modeling_mdlm import MDLMPreTrainedModel
from .network_facts import longest_text
from .projection import is_plain_linear, linear_log_probs

# Fewer shared columns than this are recomputed: a second pass would cost more than it saves.
SHORTEST_SHARED_PREFIX = 16


def autoregressive_log_probs(
    causal_lm: nn.Module,
    candidate_ids: torch.LongTensor,
    scored: torch.Tensor,
    *,
    denoiser_vocab_size: int,
    mask_token_id: int,
    start_token_id: int | None = None,
    needs_start: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    shared: int = 0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """log p_AR(x_i | x_<i) of the scored tokens, normalised over what the denoiser can emit.

    Every row is fed as [start token?] + its text, aligned left: a causal model needs no attention mask for what comes
    behind, and rows cannot disturb each other. A row without start token has its first token as context: it counts 0.

    Args:
        causal_lm: called as `causal_lm(input_ids=..., attention_mask=None)`, returns `.logits`.
        candidate_ids: (B, k, L) without mask tokens up to the last scored position.
        scored: (B, L) bool, the positions whose log-probabilities are wanted.
        denoiser_vocab_size, mask_token_id: the denoiser emits every id below the size except the mask.
        start_token_id: put in front of the rows with `needs_start` (B,) bool.
        attention_mask: (B, L), 0 at padding on either side.
        shared: leading text tokens in which all candidates of a row agree; they run once per row, through the cache.
        chunk_size: candidates per call; bounded by memory unless given.

    Returns:
        (B, k, L) log-probabilities in at least float32, 0 where not scored.

    Raises:
        ValueError: the denoiser can emit an id for which the model has no row, or the text is too long for the model.
    """
    batch, k, length = candidate_ids.shape
    real = torch.ones_like(scored) if attention_mask is None else attention_mask.bool()
    if start_token_id is None:
        needs_start, start_token_id = torch.zeros(batch, dtype=torch.bool, device=scored.device), 0
    started = needs_start.unsqueeze(1)
    # Aligned left: column c of `text` is the c-th token of a row; `column` takes the input column that predicts it.
    order = (~real).long().argsort(dim=-1, stable=True)
    # The mask, which a causal model need not know, stands behind all that is scored of a row: any id will do there.
    text = candidate_ids.masked_fill(~real.unsqueeze(1) | (candidate_ids == mask_token_id), 0)
    text = text.gather(2, order.unsqueeze(1).expand(-1, k, -1))
    shifted = nn.functional.pad(text[..., :-1], (1, 0), value=start_token_id)
    inputs = torch.where(started.unsqueeze(1), shifted, text)
    column = torch.arange(length, device=scored.device) - (~started).long()
    wanted = (scored & real).gather(1, order) & (column >= 0)  # (B, L) by text token
    targets = torch.where(started.unsqueeze(1), text, nn.functional.pad(text[..., 1:], (0, 1)))
    predicts = torch.where(started, wanted, nn.functional.pad(wanted[:, 1:], (0, 1)))  # (B, L) by input column
    used = predicts.any(0).nonzero()
    if not len(used):
        return torch.zeros(candidate_ids.shape, device=candidate_ids.device)
    end = int(used.max()) + 1
    scorer = TokenScorer(causal_lm, denoiser_vocab_size, mask_token_id)
    scorer.check_length(end)

    split, cache, parts = 0, None, []
    shared -= int(not needs_start.all())  # without a start token, input column c already predicts token c + 1
    if shared >= SHORTEST_SHARED_PREFIX and accepts(causal_lm, "past_key_values"):
        split = min(shared, end)
        log_probs, cache = scorer(inputs[:, 0, :split], predicts[:, :split], targets[:, 0, :split], None, split < end)
        parts.append(log_probs.unsqueeze(1).expand(-1, k, -1))
    if split < end:
        row_of = torch.arange(batch, device=inputs.device).repeat_interleave(k)
        flat_inputs, flat_targets = (x.flatten(0, 1)[:, split:end] for x in (inputs, targets))
        size = chunk_size or scorer.affordable_rows(end - split)
        chunks = [
            scorer(flat_inputs[i], predicts[row_of[i], split:end], flat_targets[i], select_rows(cache, row_of[i]))[0]
            for i in torch.arange(batch * k, device=inputs.device).split(size)
        ]
        parts.append(torch.cat(chunks).view(batch, k, -1))
    by_column = nn.functional.pad(torch.cat(parts, dim=-1), (0, length - end))
    by_token = by_column.gather(2, column.clamp_min(0).unsqueeze(1).expand(batch, k, -1))
    by_token = torch.where(wanted.unsqueeze(1), by_token, 0)
    return torch.zeros_like(by_token).scatter(2, order.unsqueeze(1).expand(-1, k, -1), by_token)


class TokenScorer:
    """Scores tokens under a causal language model without holding the logits of a whole batch.

    Args:
        causal_lm: a causal language model; one with `projection` (ours) never builds logits that are not asked for.
        denoiser_vocab_size, mask_token_id: what the denoiser can emit; the softmax runs over that alone.
    """

    HIDDEN_BYTES = 2**28  # activations, or logits of foreign models, per call
    LOGIT_BYTES = 2**26  # logits per projection; smaller blocks fragment the heap of glibc (below 32 MB it keeps them)

    def __init__(self, causal_lm: nn.Module, denoiser_vocab_size: int, mask_token_id: int):
        self.causal_lm = causal_lm
        self.denoiser_vocab_size, self.mask_token_id = denoiser_vocab_size, mask_token_id
        self.project = causal_lm.projection() if hasattr(causal_lm, "projection") else None

    def affordable_rows(self, length: int) -> int:
        """Rows of `length` tokens that one call may have."""
        config = getattr(self.causal_lm, "config", None)
        vocab_size, hidden_size = getattr(config, "vocab_size", 1024), getattr(config, "hidden_size", 1024)
        floats = 32 * hidden_size if self.project is not None else 3 * vocab_size
        return max(1, self.HIDDEN_BYTES // (4 * floats * length))

    def __call__(self, input_ids, scored, targets, past_key_values=None, keep_cache=False):
        """log p of `targets` (N, L) where `scored` (N, L), else 0; and the key/value cache if it is kept."""
        arguments = {"input_ids": input_ids, "attention_mask": None}
        if accepts(self.causal_lm, "use_cache"):
            arguments["use_cache"] = keep_cache or past_key_values is not None
        if past_key_values is not None:
            arguments["past_key_values"] = past_key_values
        arguments |= as_output_object(self.causal_lm)
        if self.project is not None:
            output = self.causal_lm.backbone(**arguments)
            features = output.last_hidden_state[scored]
        else:
            output = self.causal_lm(**arguments)
            features = output.logits[scored]
        log_probs = self.score(features, targets[scored])
        result = torch.zeros(targets.shape, dtype=log_probs.dtype, device=targets.device)
        result[scored] = log_probs
        return result, getattr(output, "past_key_values", None) if keep_cache else None

    def score(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets` (N,) from what predicts them (N, ...): hidden states, or the logits of foreign models."""
        head = self.causal_lm.get_output_embeddings() if self.project is not None else None
        if is_plain_linear(head):
            self.check_rows(len(head.weight))
            return linear_log_probs(features, head, targets, self.foreign(len(head.weight), targets.device))
        project = self.project or at_least_float32
        rows = project(features[:0]).shape[-1]
        self.check_rows(rows)
        foreign, chunks, size = self.foreign(rows, targets.device), [], max(1, self.LOGIT_BYTES // (4 * rows))
        for part, target in zip(features.split(size), targets.split(size), strict=True):
            logits = project(part).masked_fill(foreign, -torch.inf)
            chunks.append(logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1))
        return torch.cat(chunks)

    def foreign(self, rows: int, device: torch.device) -> torch.Tensor:
        """(rows,) bool: the rows of the model's vocabulary that the denoiser cannot emit."""
        ids = torch.arange(rows, device=device)
        return (ids >= self.denoiser_vocab_size) | (ids == self.mask_token_id)

    def check_length(self, length: int) -> None:
        limit = longest_text(self.causal_lm)
        if limit is not None and length > limit:
            raise ValueError(
                f"The autoregressive energy model reads at most {limit} tokens, but the text has {length}. Use a "
                "causal language model as long as the denoiser's texts, or shorter texts."
            )

    def check_rows(self, rows: int) -> None:
        highest = self.denoiser_vocab_size - 1 - (self.mask_token_id == self.denoiser_vocab_size - 1)
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows. "
                "Use a causal language model of the same vocabulary."
            )


def select_rows(cache: Cache | None, rows: torch.Tensor) -> Cache | None:
    """A copy of a key/value cache with the given rows, each as often as it is named."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_select_indices(rows)
    return cache


def as_output_object(module: nn.Module) -> dict[str, bool]:
    """`return_dict=True` for models of transformers and ours, whose configuration may ask for tuples."""
    known = isinstance(module, MDLMPreTrainedModel) or type(module).__module__.startswith("transformers.")
    return {"return_dict": True} if known else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward of `module` has a parameter called `name`."""
    return name in inspect.signature(module.forward).parameters
