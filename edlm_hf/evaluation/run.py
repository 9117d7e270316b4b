"""One model on one corpus: what `edlm evaluate` does."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf.data import PROTOCOLS, document_windows, load_corpus, to_blocks
from edlm_hf.evaluation.autoregressive_likelihood import autoregressive_nll
from edlm_hf.evaluation.h_profile import HProfile, h_profile
from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound
from edlm_hf.evaluation.paper_likelihood import paper_nll
from edlm_hf.evaluation.scoring import LikelihoodEstimate
from edlm_hf.evaluation.texts import Texts, read_texts
from edlm_hf.hidden_secrets import hide_in_values
from edlm_hf.loading import load_causal, load_config, load_masked, load_tokenizer
from edlm_hf.processes import connected
from edlm_hf.tokenization import is_text8, normalize_text8

METRICS: dict[str, Callable] = {
    "nelbo": nelbo,
    "discrete_nelbo": discrete_nelbo,
    "sampler_bound": sampler_bound,
    "paper_nll": paper_nll,
    "autoregressive_nll": autoregressive_nll,
    "h_profile": h_profile,
}


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Args:
        model: folder or Hub repository, its tokenizer beside it unless `tokenizer` names one.
        data: the name of a protocol (`edlm_hf.data.PROTOCOLS`), a Hub dataset, or local files.
        metrics: of METRICS.
        split: the protocol's own unless given, or "test".
        normalize: "text8" turns the text into the alphabet of 26 letters and the space, as it does unless given where
            the tokenizer has no other symbols; "none" leaves it as it is.
        length: tokens per text, the protocol's unless given, or the model's; at most the model's.
        stride: score every document in windows of `length` that move by `stride`. Without it documents are joined and
            cut into blocks: with end-of-text between them where the tokenizer has it, nothing left out.
        num_texts: the first so many texts only.
        num_steps, num_candidates, inner_copies, energy_window: T, k, m and w of the sampler bound.
        sampler_options: its `sampler`, and the parameters of that; those of the model unless given.
        num_samples: noise samples per text.
        dtype: float32, bfloat16 or float16, that of the checkpoint unless given.

    Raises:
        ValueError: an unknown metric, normalisation or dtype, no metric, a number below 1, or a sampler without its
            bound among the metrics.
    """

    model: str
    data: str
    metrics: tuple[str, ...] = ("nelbo",)
    tokenizer: str | None = None
    split: str | None = None
    normalize: str | None = None
    length: int | None = None
    stride: int | None = None
    num_texts: int | None = None
    num_steps: int = 128
    sampler_options: dict = field(default_factory=dict)
    num_candidates: int | None = None
    inner_copies: int = 1
    energy_window: float | None = None
    num_samples: int = 2
    batch_size: int = 16
    seed: int = 0
    dtype: str | None = None
    device: str = "cpu"
    progress_bar: bool = field(default=False, repr=False)

    def __post_init__(self):
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics has {unknown or 'nothing'}, but it must name some of {', '.join(METRICS)}.")
        if self.normalize not in (None, "text8", "none"):
            raise ValueError(f"normalize is {self.normalize!r}, but it must be text8 or none.")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}, but it must be float32, bfloat16 or float16.")
        if self.sampler_options and "sampler_bound" not in self.metrics:
            raise ValueError(
                f"{', '.join(self.sampler_options)} can only change sampler_bound, but metrics is "
                f"{', '.join(self.metrics)}. Add sampler_bound."
            )
        for name in ("length", "stride", "num_texts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least 1.")

    def options(self, metric: str) -> dict:
        """Arguments of a metric beside model and texts."""
        options = {"batch_size": self.batch_size, "distributed": True, "progress_bar": self.progress_bar}
        if metric != "autoregressive_nll":
            options |= {"num_samples": self.num_samples, "seed": self.seed}
        if metric in ("discrete_nelbo", "sampler_bound"):
            options["num_steps"] = self.num_steps
        if metric == "sampler_bound":
            options |= {"num_candidates": self.num_candidates, "inner_copies": self.inner_copies}
            options |= self.sampler_options
            options |= {} if self.energy_window is None else {"energy_window": self.energy_window}
        return options


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one run by name, over `texts` of `characters` characters that count."""

    settings: EvaluationSettings
    texts: Texts
    characters: int
    metrics: dict[str, LikelihoodEstimate | HProfile]

    def to_dict(self) -> dict:
        tokens = int(self.texts.counts.sum())
        result = {"model": self.settings.model, "data": self.settings.data, "dtype": self.settings.dtype}
        result["settings"] = {name: x for name, x in asdict(self.settings).items() if name != "progress_bar"}
        result = hide_in_values(result)  # an address may hold a password
        result["num_texts"] = len(self.texts.ids)
        result |= {"num_tokens": tokens, "num_characters": self.characters, "metrics": {}}
        for name, found in self.metrics.items():
            if isinstance(found, HProfile):
                values = [entropy.to_dict() for entropy in found.entropies]
                result["metrics"][name] = {"times": list(found.times), "entropies": values}
            else:
                units = {"perplexity": found.perplexity, "bits_per_character": self.bits_per_character(found)}
                result["metrics"][name] = found.to_dict() | {unit: x.to_dict() for unit, x in units.items()}
        return result

    def bits_per_character(self, found: LikelihoodEstimate):
        return found.bits_per("character", self.characters * found.num_tokens / float(self.texts.counts.sum()))

    def markdown(self) -> str:
        """Likelihoods, with the error of the noise and in brackets that over texts; and the profile h(t)."""
        profiles = "".join(
            f"| {name}, t | nats/masked token |\n| --- | --- |\n"
            + "".join(f"| {t:.3g} | {h.rounded()} |\n" for t, h in zip(found.times, found.entropies, strict=True))
            for name, found in self.metrics.items()
            if isinstance(found, HProfile)
        )
        if len(profiles) and all(isinstance(found, HProfile) for found in self.metrics.values()):
            return profiles
        rows = [["metric", "nats/token", "perplexity", "bits/character", "texts", "noise samples"], ["---"] * 6]
        for name, found in self.metrics.items():
            if isinstance(found, LikelihoodEstimate):
                value = f"{found.rounded()} ({found.text_standard_error:.2g})"
                others = found.perplexity.rounded(), self.bits_per_character(found).rounded()
                rows.append([name, value, *others, str(len(found.sequence_nats)), str(found.num_samples)])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (profiles and f"\n{profiles}")


def evaluate_model(settings: EvaluationSettings) -> Evaluation:
    """Load, cut and score; under `torchrun` the processes share the scoring, and all get the result.

    Raises:
        ValueError: what the settings, the corpus, the tokenizer or a metric refuse.
    """
    config = load_config(settings.model)
    tokenizer = load_tokenizer(settings.tokenizer or settings.model)
    if config.model_type == "edlm" or any(metric != "autoregressive_nll" for metric in settings.metrics):
        model = load_masked(settings.model, tokenizer, dtype=settings.dtype or "auto")
    else:
        model = load_causal(settings.model, dtype=settings.dtype or "auto")
    with connected().main_process_first():  # which leaves the blocks in the cache for the others
        ids, scored = load_texts(settings, tokenizer, model.config)
    texts = read_texts(model.config, ids, scored=scored)
    model = model.to(settings.device)
    counted = (row[keep] for row, keep in zip(texts.ids, texts.scored, strict=True))
    return Evaluation(
        settings=settings,
        texts=texts,
        characters=sum(map(len, tokenizer.batch_decode(list(counted), clean_up_tokenization_spaces=False))),
        metrics={name: METRICS[name](model, ids, scored=scored, **settings.options(name)) for name in settings.metrics},
    )


def load_texts(
    settings: EvaluationSettings, tokenizer: PreTrainedTokenizerBase, config
) -> tuple[Sequence[list[int]], list[torch.Tensor] | None]:
    """Ids of every text, and which of them to score where windows overlap (None: as the likelihoods have it)."""
    protocol = PROTOCOLS.get(settings.data)
    split = settings.split or (protocol.evaluation if protocol else "test")
    alphabet = settings.normalize or ("text8" if is_text8(tokenizer) and settings.data != "text8" else "none")
    corpus = load_corpus(settings.data, split, normalize=normalize_text8 if alphabet == "text8" else None)
    longest = getattr(config, "max_position_embeddings", None)
    wanted = [x for x in (settings.length or (protocol.length if protocol else None), longest) if x is not None]
    if not wanted:
        raise ValueError(f"{settings.model} does not say how long its texts are: pass length.")
    length, start = min(wanted), getattr(config, "bos_token_id", None)
    if settings.stride is None:
        marked = tokenizer.eos_token_id is not None or tokenizer.sep_token_id is not None
        style = protocol.style if protocol else "wrap" if marked else "crop"
        blocks = to_blocks(
            corpus, tokenizer, length, style=style, start_token=start is not None and style == "crop", drop_last=False
        )
        if settings.num_texts is not None:
            blocks = blocks.select(range(min(settings.num_texts, len(blocks))))
        blocks = blocks.with_format("numpy")
        return [row["input_ids"][row["attention_mask"] == 1].tolist() for row in blocks], None
    prefix = [] if start is None else [start]
    ids, scored = [], []
    for text in corpus["text"]:
        found = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        tokens = torch.tensor(found, device="cpu")
        if not len(tokens):
            continue
        for row, counts in zip(*document_windows(tokens, length - len(prefix), settings.stride), strict=True):
            ids.append(prefix + row.tolist())
            scored.append(torch.cat([torch.zeros(len(prefix), dtype=torch.bool, device="cpu"), counts]))
            if len(ids) == settings.num_texts:
                return ids, scored
    return ids, scored
