"""Generative perplexity: how likely samples are under a causal language model, the judge.

A judge likes repetition, so that the number means nothing without the entropy of the samples.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.evaluation.estimate import Estimate, ratio_estimate
from edlm_hf.evaluation.judges import check_rows, context_length, load_judge, start_token
from edlm_hf.evaluation.sample_lists import as_list, excerpt
from edlm_hf.modeling.evaluation_mode import evaluating
from edlm_hf.modeling.masked_diffusion import at_least_float32


@dataclass(frozen=True)
class PerplexityEstimate(Estimate):
    """exp of `nll` (nats per token), with its standard error over texts carried over to first order.

    Args:
        nll: mean negative log-likelihood per token.
        num_tokens: the judge's tokens that count. `num_samples` is the number of texts.
        sample_perplexities: of the single texts, NaN for a text of which no token counts.
    """

    nll: Estimate
    num_tokens: int
    sample_perplexities: tuple[float, ...]


class Window(NamedTuple):
    """The tokens first..stop of a text, which the judge sees at once. The tokens scored..stop are scored."""

    text: int
    first: int
    scored: int
    stop: int


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str],
    judge: str | PreTrainedModel,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    stride: int | None = None,
    add_start_token: bool = False,
    device: str | torch.device | None = None,
    progress_bar: bool = False,
) -> PerplexityEstimate:
    """exp of the mean negative log-likelihood per token of `texts` under a causal language model.

    The protocol of MDLM and EDLM (arXiv 2406.07524, 2410.21357): texts are tokenized anew, without
    special tokens. The first token of a text is context only. Every later one counts that is not
    end-of-text, and so does the first end-of-text. Texts should be decoded with their special tokens,
    or there is no end-of-text to count. Unlike in the published code all texts are scored, whatever
    the batch size, and padding never counts.

    The number means nothing alone: report it with `unigram_entropy`, as `sample_report` does.

    Args:
        judge: a causal language model or the name of one.
        tokenizer: the judge's own tokenizer, or its name. Unless given, found under the judge's name.
        batch_size: changes the speed only.
        max_length: the longest row that the judge is given, in tokens. Unless given, the limit of its
            configuration.
        stride: how far a window of `max_length` tokens is moved over longer texts. Every token is
            counted once, with at least `max_length - stride` tokens before it.
        add_start_token: put the judge's start token before each text, so that the first token counts.
        device: where to move the judge. Unless given, it stays where it is.

    Raises:
        ValueError: no texts, a text too short to score or longer than the context (without `stride`),
            an argument out of range, a tokenizer that is not the judge's, or a token of probability
            zero or NaN.
    """
    texts = as_list(texts, "texts")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")
    judge, tokenizer = load_judge(judge, tokenizer, device)
    context = context_length(judge, max_length, stride)
    start = start_token(tokenizer) if add_start_token else []

    # 1. Rows of token ids, and which of these count. The start token never does.
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    rows = [start + row for row in ids]
    end = tokenizer.eos_token_id
    counted = [count_tokens(row, start, end) for row in ids]  # bool (length,) each
    check_rows(rows, judge, context, stride, add_start_token)

    # 2. Windows, the longest first: little padding, and too little memory shows at once
    to_score = []
    for text, row in enumerate(rows):
        for first, scored, stop in windows(len(row), context, stride):
            to_score.append(Window(text, first, scored, stop))
    to_score.sort(key=lambda window: window.first - window.stop)

    # 3. Nats and tokens of every text
    nats = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
    tokens = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
    with evaluating(judge):
        batches = tracked_batches(to_score, batch_size, progress_bar)
        for window, nlls in score_windows(judge, rows, batches):
            # -log p of the tokens scored..stop that count
            text = window.text
            counts = counted[text][window.scored : window.stop]
            nlls = nlls[counts]

            # Its exp is 1 / p, which is not finite where p = 0
            if not nlls.exp().isfinite().all():
                raise ValueError(
                    f"The judge gives a token of text {text} ({excerpt(texts[text])}) probability zero or NaN. Use a "
                    "judge that allows every token of its tokenizer, in float32 or bfloat16."
                )

            nats[text] += nlls.sum()
            tokens[text] += len(nlls)

    # exp(nll), whose error to first order is exp(nll) times the error of nll
    nll = ratio_estimate(nats, tokens, "nats/token")
    value = math.exp(nll.value)
    return PerplexityEstimate(
        value=value,
        standard_error=value * nll.standard_error,
        num_samples=len(texts),
        unit="perplexity",
        nll=nll,
        num_tokens=int(tokens.sum()),
        sample_perplexities=tuple((nats / tokens).exp().tolist()),
    )


def count_tokens(row: list[int], start: list[int], eos_token_id: int | None) -> torch.BoolTensor:
    """Which tokens of a row with the tokens `start` in front count: (length,) bool."""
    ids = torch.tensor([row], device="cpu")  # (1, L)
    in_text = judge_weight_mask(ids, eos_token_id)[0]
    in_start = torch.zeros(len(start), dtype=torch.bool, device="cpu")
    return torch.cat([in_start, in_text])


def judge_weight_mask(
    ids: torch.LongTensor,
    eos_token_id: int | None,
    attention_mask: torch.Tensor | None = None,
) -> torch.BoolTensor:
    """Which tokens count for generative perplexity: those that are not end-of-text, and the first end-of-text.

    Text after an end-of-text counts, repeated end-of-text does not, padding neither. Position 0 takes
    part in finding the first, though a judge without start token cannot score it.

    Args:
        ids: (B, L).
        attention_mask: (B, L), zero at padding.

    Returns:
        (B, L).
    """
    # (B, L), False at padding
    if attention_mask is None:
        real = torch.ones_like(ids, dtype=torch.bool)
    else:
        real = attention_mask.bool()
    if eos_token_id is None:
        return real

    # The number of end-of-text tokens up to a position is 1 at the first of them
    is_end = (ids == eos_token_id) & real
    is_first_end = is_end & (is_end.cumsum(-1) == 1)
    counts = ~is_end | is_first_end
    return real & counts


def windows(length: int, context: int | None, stride: int | None) -> Iterator[tuple[int, int, int]]:
    """Windows (first, scored, stop) of at most `context` tokens that score every token but the first once.

    Each is `stride` tokens further on, the last one less if the text ends before.

    >>> list(windows(10, 4, 3))
    [(0, 1, 4), (3, 4, 7), (6, 7, 10)]
    """
    # The first token has nothing before it
    scored = 1
    stop = min(length, context or length)
    yield 0, scored, stop

    # The next tokens, with as many of the earlier ones before them as fit
    while stop < length:
        scored = stop
        stop = min(stop + stride, length)
        yield stop - context, scored, stop


def tracked_batches(to_score: list[Window], batch_size: int, progress_bar: bool) -> Iterable[list[Window]]:
    """Batches of windows, with a progress bar on the standard error where one is asked for."""
    begins = range(0, len(to_score), batch_size)
    batches = [to_score[begin : begin + batch_size] for begin in begins]
    console = Console(stderr=True)
    return track(batches, "generative perplexity", console=console, disable=not progress_bar)


def score_windows(
    judge: PreTrainedModel,
    rows: list[list[int]],
    batches: Iterable[list[Window]],
) -> Iterator[tuple[Window, torch.Tensor]]:
    """Every window with -log p of the tokens that it scores, (stop - scored,) float64."""
    for batch in batches:
        # Tokens of every window, and where scoring begins inside it
        inputs = [rows[window.text][window.first : window.stop] for window in batch]
        begins = [window.scored - window.first for window in batch]

        nlls = next_token_nlls(judge, inputs, begins)
        yield from zip(batch, nlls, strict=True)


def next_token_nlls(judge: PreTrainedModel, rows: list[list[int]], scored: list[int]) -> list[torch.Tensor]:
    """-log p(token | those before it) in nats, of one batch.

    Args:
        rows: token ids of any lengths.
        scored: from which position on each row is scored, at least 1.

    Returns:
        Per row (length - scored,), float64, on the CPU.
    """
    # Padded on the right: (B, L)
    ids = [torch.tensor(row, device=judge.device) for row in rows]
    real = [torch.ones_like(row) for row in ids]
    padded = pad_sequence(ids, batch_first=True)
    mask = pad_sequence(real, batch_first=True)

    # (B, L, V)
    logits = judge(
        input_ids=padded,
        attention_mask=mask,
        use_cache=False,
        return_dict=True,
    ).logits

    # Row by row: there is never a second (B, L, V). The logits at position i are of token i + 1.
    nlls = []
    for row, row_logits, first in zip(ids, logits, scored, strict=True):
        predicting = row_logits[first - 1 : len(row) - 1]
        log_probs = at_least_float32(predicting).log_softmax(-1)
        targets = row[first:, None]  # (n, 1)
        of_tokens = log_probs.gather(-1, targets).squeeze(-1)
        nlls.append(-of_tokens.cpu().double())
    return nlls
