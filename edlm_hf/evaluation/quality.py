"""How good samples are: generative perplexity under a judge, and the diversity without which it means nothing.

A judge likes repetition, so a low generative perplexity at a low entropy is no success: `sample_report` gives both, and
what the samples cost. Every number comes with its standard error over samples.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.evaluation.estimate import Estimate, mean_estimate, ratio_estimate
from edlm_hf.loading import load_causal, load_tokenizer
from edlm_hf.modeling.evaluation_mode import evaluating
from edlm_hf.modeling.masked_diffusion import at_least_float32

# -------------------------------------------------------------------------------------------- generative perplexity


@dataclass(frozen=True)
class PerplexityEstimate(Estimate):
    """exp of `nll` (nats per token), with the standard error carried over to first order; standard errors over texts.

    `num_samples` counts texts and `num_tokens` the judge's tokens that count. `sample_perplexities` are those of the
    single texts, NaN for a text of which no token counts.
    """

    nll: Estimate
    num_tokens: int
    sample_perplexities: tuple[float, ...]


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

    The protocol of MDLM and EDLM (arXiv 2406.07524, 2410.21357): texts are tokenized anew, without special tokens; the
    first token of a text is context only; every later one counts that is not end-of-text, and so does the first
    end-of-text. Texts should be decoded with their special tokens, or there is no end-of-text to count. Unlike in the
    published code all texts are scored, whatever the batch size, and padding never counts.

    Meaningless alone: report it with `unigram_entropy`, as `sample_report` does.

    Args:
        judge: a causal language model or the name of one.
        tokenizer: the judge's own tokenizer, or its name; unless given, found under the judge's name.
        batch_size: changes the speed only.
        max_length: the longest row that the judge is given, in tokens; unless given, what its configuration allows.
        stride: how far a window of `max_length` tokens is moved over longer texts: every token is counted once, with
            at least `max_length - stride` tokens before it.
        add_start_token: put the judge's start token before each text, so that the first token counts as well.
        device: where to move the judge; unless given, it stays where it is.

    Raises:
        ValueError: no texts, a text too short to score or longer than the context (without `stride`), an argument out
            of range, a tokenizer that is not the judge's, or a token of probability zero or NaN.
    """
    texts = listed(texts, "texts")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")
    judge, tokenizer = load_judge(judge, tokenizer, device)
    context = context_length(judge, max_length, stride)
    start = start_token(tokenizer) if add_start_token else []
    rows = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    counts = [judge_weight_mask(torch.tensor([row], device="cpu"), tokenizer.eos_token_id)[0] for row in rows]
    rows = [start + row for row in rows]
    check_rows(rows, judge, context, stride, add_start_token)

    spans = [(i, *span) for i, row in enumerate(rows) for span in windows(len(row), context, stride)]
    spans.sort(key=lambda span: span[1] - span[3])  # longest first: little padding, and too little memory shows at once
    batches = [spans[at : at + batch_size] for at in range(0, len(spans), batch_size)]
    nats, tokens = torch.zeros(2, len(rows), dtype=torch.float64, device="cpu")
    with evaluating(judge):
        console = Console(stderr=True)
        for batch in track(batches, "generative perplexity", console=console, disable=not progress_bar):
            inputs = [rows[i][first:stop] for i, first, _, stop in batch]
            nlls = next_token_nlls(judge, inputs, [scored - first for _, first, scored, _ in batch])
            for (i, _, scored, stop), nll in zip(batch, nlls, strict=True):
                nll = nll[counts[i][scored - len(start) : stop - len(start)]]
                if not nll.exp().isfinite().all():
                    raise ValueError(
                        f"The judge gives a token of text {i} ({shown(texts[i])}) probability zero or NaN. Use a judge "
                        "that allows every token of its tokenizer, in float32 or bfloat16."
                    )
                nats[i] += nll.sum()
                tokens[i] += len(nll)
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


# ---------------------------------------------------------------------------------------------- diversity and spelling


def unigram_entropy(ids: Sequence[Sequence[int]] | torch.Tensor) -> Estimate:
    """Mean over samples of -sum_v f_v log2 f_v in bits, f the frequencies of the tokens within a sample.

    Args:
        ids: (B, L), or B lists of any lengths. All of them count: leave padding out.

    Raises:
        ValueError: no samples.
    """
    return mean_estimate([entropy_bits(row) for row in listed(ids, "ids")], "bits")


def word_entropy(texts: Sequence[str]) -> Estimate:
    """`unigram_entropy` of the words between white space; a text without words has none: 0 bits.

    Raises:
        ValueError: no texts.
    """
    return unigram_entropy([text.split() for text in listed(texts, "texts")])


def distinct_n(samples: Sequence[str] | Sequence[Sequence[int]] | torch.Tensor, n: int = 2) -> Estimate:
    """Share of n-grams that are new within their sample, after Li et al. (arXiv 1510.03055); 1: no repetition.

    Args:
        samples: texts, of which the words count, or token ids: (B, L), or B lists. Shorter ones than n add nothing.

    Raises:
        ValueError: no samples, n < 1, or no sample has n tokens.
    """
    if n < 1:
        raise ValueError(f"n is {n}, but an n-gram has at least 1 token.")
    rows = [row.split() if isinstance(row, str) else row for row in listed(samples, "samples")]
    grams = [list(zip(*(row[i:] for i in range(n)), strict=False)) for row in rows]
    if not any(grams):
        raise ValueError(f"None of the {len(rows)} samples has {n} tokens: choose a smaller n.")
    return ratio_estimate([len(set(row)) for row in grams], [len(row) for row in grams], f"distinct {n}-grams")


def vocabulary_of(texts: Iterable[str], min_count: int = 1) -> frozenset[str]:
    """The words between white space that occur at least `min_count` times in all."""
    counts = Counter(word for text in texts for word in text.split())
    return frozenset(word for word, count in counts.items() if count >= min_count)


def spelling_accuracy(texts: Sequence[str], vocabulary: Collection[str]) -> Estimate:
    """Share of words, of all texts, that are in a vocabulary, such as `vocabulary_of` the training texts.

    Words that the ends of a sample cut in two count like others: compare with samples of the data of equal length.

    Raises:
        ValueError: no texts, no vocabulary, or no word in any text.
    """
    words = [text.split() for text in listed(texts, "texts")]
    vocabulary = frozenset(listed(vocabulary, "vocabulary"))
    if not any(words):
        raise ValueError(f"There is not a word in the {len(words)} texts.")
    found = [sum(word in vocabulary for word in row) for row in words]
    return ratio_estimate(found, [len(row) for row in words], "known words")


def mauve(texts: Sequence[str], references: Sequence[str], **arguments) -> Estimate:
    """MAUVE (Pillutla et al., arXiv 2102.01454) between samples and human texts, by the package `mauve-text`.

    Args:
        arguments: for `mauve.compute_mauve`, as `featurize_model_name` or `device_id`.

    Returns:
        The score between 0 and 1; the package gives no standard error: NaN.

    Raises:
        ImportError: the package is not installed.
        ValueError: no texts or no references.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ImportError("MAUVE is computed by a package of its own: pip install mauve-text") from error
    texts, references = listed(texts, "texts"), listed(references, "references")
    score = compute_mauve(p_text=references, q_text=texts, **({"verbose": False} | arguments)).mauve
    return Estimate(float(score), math.nan, len(texts), "MAUVE")


# --------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class SampleReport:
    """Quality of samples beside what they cost; None is what was not asked for."""

    num_samples: int
    generative_perplexity: PerplexityEstimate | None
    unigram_entropy: Estimate
    word_entropy: Estimate
    spelling_accuracy: Estimate | None
    denoiser_calls: Estimate
    energy_calls: Estimate
    seconds_per_sample: float

    def to_dict(self) -> dict:
        return asdict(self)


def sample_report(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]] | torch.Tensor,
    *,
    judge: str | PreTrainedModel | None,
    denoiser_calls: Sequence[int] | torch.Tensor,
    energy_calls: Sequence[int] | torch.Tensor,
    seconds: float,
    vocabulary: Collection[str] | None = None,
    **judge_options,
) -> SampleReport:
    """Everything that a claim about samples has to come with.

    Args:
        texts, ids: the same B samples as text and as tokens of the model that made them.
        judge, judge_options: for `generative_perplexity`; without a judge there is none.
        denoiser_calls, energy_calls: (B,) per sample, as `generate` counts them.
        seconds: for all samples together.
        vocabulary: for `spelling_accuracy`; without one there is none.

    Raises:
        ValueError: the samples, texts and calls are not equally many, or what the functions called here refuse.
    """
    given = {"texts": texts, "ids": ids, "denoiser_calls": denoiser_calls, "energy_calls": energy_calls}
    sizes = {name: len(values) for name, values in given.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"These must be one per sample, but their lengths are {sizes}.")
    return SampleReport(
        num_samples=len(texts),
        generative_perplexity=None if judge is None else generative_perplexity(texts, judge, **judge_options),
        unigram_entropy=unigram_entropy(ids),
        word_entropy=word_entropy(texts),
        spelling_accuracy=None if vocabulary is None else spelling_accuracy(texts, vocabulary),
        denoiser_calls=mean_estimate(denoiser_calls, "calls/sample"),
        energy_calls=mean_estimate(energy_calls, "calls/sample"),
        seconds_per_sample=seconds / len(texts),
    )


def markdown_table(reports: Mapping[str, SampleReport]) -> str:
    """One row per named report, `value ± standard error`; calls and seconds are per sample."""
    columns = {
        "n": lambda report: str(report.num_samples),
        "Gen-PPL": lambda report: cell(report.generative_perplexity),
        "entropy (bits)": lambda report: cell(report.unigram_entropy),
        "word entropy (bits)": lambda report: cell(report.word_entropy),
        "known words": lambda report: cell(report.spelling_accuracy),
        "denoiser calls": lambda report: cell(report.denoiser_calls),
        "energy calls": lambda report: cell(report.energy_calls),
        "seconds": lambda report: f"{report.seconds_per_sample:.3g}",
    }
    rows = [["samples", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(column(report) for column in columns.values())] for name, report in reports.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else estimate.rounded()


# ------------------------------------------------------------------------------------------------- judges and samples


def load_judge(judge, tokenizer, device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Both as objects, the judge on `device` where one is given."""
    name = judge if isinstance(judge, str) else judge.name_or_path
    if tokenizer is None and not name:
        raise ValueError("The judge has no name under which to find its tokenizer: pass it as `tokenizer`.")
    if isinstance(judge, str):
        judge = load_causal(judge)
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer or name)
    return judge if device is None else judge.to(device), tokenizer


def context_length(judge: PreTrainedModel, max_length: int | None, stride: int | None) -> int | None:
    """Tokens that the judge may be given at once; None if there is no limit."""
    own = getattr(judge.config.get_text_config(), "max_position_embeddings", None)
    if max_length is not None and not 2 <= max_length <= (own or max_length):
        raise ValueError(f"max_length is {max_length}, but it must be from 2 to the context of the judge, {own}.")
    context = own if max_length is None else max_length
    if stride is not None and not 1 <= stride < (context or math.inf):
        raise ValueError(
            f"stride is {stride}, but it must be from 1 to {(context or math.inf) - 1}, one less than the context: "
            "a window must know at least one token before those it scores."
        )
    return context


def start_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise ValueError("The tokenizer of the judge has no start token: add_start_token must be False.")
    return [tokenizer.bos_token_id]


def check_rows(rows, judge: PreTrainedModel, context: int | None, stride: int | None, add_start_token: bool) -> None:
    """Every row can be scored by the judge."""
    vocab_size, needed = judge.config.get_text_config().vocab_size, 2 - add_start_token
    for i, row in enumerate(rows):
        if len(row) < 2:
            raise ValueError(
                f"Text {i} has {len(row) - add_start_token} tokens, but at least {needed} must be there to score one. "
                f"Leave it out{'' if add_start_token else ', or count first tokens too: add_start_token=True'}."
            )
        if context is not None and len(row) > context and stride is None:
            raise ValueError(
                f"Text {i} has {len(row)} tokens, but the context of the judge is {context}. Pass stride, for example "
                f"{max(context // 2, 1)}, to score it in overlapping windows."
            )
        if max(row) >= vocab_size:
            raise ValueError(
                f"Text {i} has token {max(row)}, but the judge knows ids below {vocab_size}: pass the judge's own "
                "tokenizer."
            )


def listed(samples: Iterable, name: str) -> list:
    """Samples as a list, tensors and arrays as lists of lists.

    Raises:
        ValueError: there are none, or a single one was passed.
    """
    rows = [sample.tolist() if hasattr(sample, "tolist") else sample for sample in samples]
    if not rows:
        raise ValueError(f"{name} is empty, but at least one is needed.")
    if isinstance(samples, str) or isinstance(rows[0], int):
        raise ValueError(f"{name} is a single one ({shown(str(samples))}), but a list of them is needed: [{name}].")
    return rows


def shown(text: str, length: int = 40) -> str:
    return repr(text) if len(text) <= length else f"{text[:length]!r}..."


# ---------------------------------------------------------------------------------------------------- pure functions


def judge_weight_mask(
    ids: torch.LongTensor, eos_token_id: int | None, attention_mask: torch.Tensor | None = None
) -> torch.BoolTensor:
    """Which tokens count for generative perplexity: those that are not end-of-text, and the first end-of-text.

    Text after an end-of-text counts, repeated end-of-text does not, padding neither. Position 0 takes part in finding
    the first, though a judge without start token cannot score it.

    Args:
        ids: (B, L).
        attention_mask: (B, L), zero at padding.

    Returns:
        (B, L).
    """
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if eos_token_id is None:
        return real
    end = (ids == eos_token_id) & real
    return real & (~end | (end.cumsum(-1) == 1))


def next_token_nlls(judge: PreTrainedModel, rows: list[list[int]], scored: list[int]) -> list[torch.Tensor]:
    """-log p(token | those before it) in nats, of one batch.

    Args:
        rows: token ids of any lengths.
        scored: from which position on each row is scored, at least 1.

    Returns:
        Per row (length - scored,), float64, on the CPU.
    """
    ids = [torch.tensor(row, device=judge.device) for row in rows]
    padded = pad_sequence(ids, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    logits = judge(input_ids=padded, attention_mask=mask, use_cache=False, return_dict=True).logits  # (B, L, V)
    nlls = []
    for row, row_logits, first in zip(ids, logits, scored, strict=True):  # row by row: never a second (B, L, V)
        log_probs = at_least_float32(row_logits[first - 1 : len(row) - 1]).log_softmax(-1)
        nlls.append(-log_probs.gather(-1, row[first:, None]).squeeze(-1).cpu().double())
    return nlls


def windows(length: int, context: int | None, stride: int | None) -> Iterator[tuple[int, int, int]]:
    """Windows (first, scored, stop) of at most `context` tokens, each `stride` on; each token but 0 is scored once.

    >>> list(windows(10, 4, 3))
    [(0, 1, 4), (3, 4, 7), (6, 7, 10)]
    """
    scored, stop = 1, min(length, context or length)
    yield 0, scored, stop
    while stop < length:
        scored, stop = stop, min(stop + stride, length)
        yield stop - context, scored, stop


def entropy_bits(tokens: Sequence) -> float:
    """sum_v f_v log2(1 / f_v) of the frequencies f of the tokens (any hashable things); 0 of no tokens."""
    total = len(tokens)
    return sum(count / total * math.log2(total / count) for count in Counter(tokens).values())
