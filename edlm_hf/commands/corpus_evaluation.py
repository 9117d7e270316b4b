"""One model on one corpus: what `edlm evaluate` does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf import evaluation
from edlm_hf.commands.evaluate import EvaluationSettings
from edlm_hf.data import block_rule, document_windows
from edlm_hf.data.block_rules import evaluation_split
from edlm_hf.data.corpus import Corpus
from edlm_hf.evaluation import HProfile, LikelihoodEstimate
from edlm_hf.evaluation.texts import Texts, read_texts
from edlm_hf.hidden_secrets import hide_in_values
from edlm_hf.loading import load_causal, load_config, load_masked, load_tokenizer
from edlm_hf.modeling.network_facts import longest_text
from edlm_hf.processes import connected


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one run by name, over `texts` of `characters` characters that count.

    Args:
        sampler_options: sampler of the bound and its parameters.
    """

    settings: EvaluationSettings
    sampler_options: dict
    texts: Texts
    characters: int
    metrics: dict[str, LikelihoodEstimate | HProfile]

    def to_dict(self) -> dict:
        tokens = int(self.texts.counts.sum())
        result = {"model": self.settings.model, "data": self.settings.dataset, "dtype": self.settings.dtype}
        result["settings"] = self.recorded_settings()
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

    def recorded_settings(self) -> dict:
        """The settings by the names that they have in every file of results."""
        settings = asdict(self.settings)
        normalize = settings.pop("normalize_text8")
        settings["data"] = settings.pop("dataset")
        settings["normalize"] = None if normalize is None else "text8" if normalize else "none"
        settings["sampler_options"] = self.sampler_options
        return settings

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


def evaluate_model(
    settings: EvaluationSettings,
    sampler_options: dict,
    progress_bar: bool = False,
) -> Evaluation:
    """Load, cut and score. Under `torchrun` the processes share the scoring, and all get the result.

    Args:
        sampler_options: the sampler of `sampler_bound` and its parameters, those of the model unless given.

    Raises:
        ValueError: a sampler without its bound among the metrics, or what the settings, the corpus, the tokenizer or a
            metric refuse.
    """
    if sampler_options and "sampler_bound" not in settings.metrics:
        raise ValueError(
            f"{', '.join(sampler_options)} can only change sampler_bound, but metrics is "
            f"{', '.join(settings.metrics)}. Add sampler_bound."
        )

    # 1. The model
    config = load_config(settings.model)
    tokenizer = load_tokenizer(settings.tokenizer or settings.model)
    if config.model_type == "edlm" or any(metric != "autoregressive_nll" for metric in settings.metrics):
        model = load_masked(settings.model, tokenizer, dtype=settings.dtype or "auto")
    else:
        model = load_causal(settings.model, dtype=settings.dtype or "auto")

    # 2. The texts. The main process leaves the blocks in the cache for the others
    with connected().main_process_first():
        ids, scored = load_texts(settings, tokenizer, model.config)
    texts = read_texts(model.config, ids, scored=scored)
    counted = [row[keep] for row, keep in zip(texts.ids, texts.scored, strict=True)]
    characters = sum(map(len, tokenizer.batch_decode(counted, clean_up_tokenization_spaces=False)))

    # 3. The metrics
    model = model.to(settings.device)
    common = {"scored": scored, "distributed": True, "progress_bar": progress_bar}
    metrics = {}
    for name in settings.metrics:
        measure = getattr(evaluation, name)
        metrics[name] = measure(model, ids, **common, **metric_options(settings, name, sampler_options))
    return Evaluation(settings, sampler_options, texts, characters, metrics)


def metric_options(settings: EvaluationSettings, metric: str, sampler_options: dict) -> dict:
    """Arguments of a metric that follow from the settings."""
    options = {"batch_size": settings.batch_size}
    if metric != "autoregressive_nll":
        options["num_samples"] = settings.num_samples
        options["seed"] = settings.seed
    if metric in ("discrete_nelbo", "sampler_bound"):
        options["num_steps"] = settings.num_steps
    if metric == "sampler_bound":
        options["num_candidates"] = settings.num_candidates
        options["inner_copies"] = settings.inner_copies
        options.update(sampler_options)
        if settings.energy_window is not None:
            options["energy_window"] = settings.energy_window
    return options


def load_texts(
    settings: EvaluationSettings, tokenizer: PreTrainedTokenizerBase, config
) -> tuple[Sequence[list[int]], list[torch.Tensor] | None]:
    """Ids of every text, and which of them to score where windows overlap (None: as the likelihoods have it)."""
    longest = longest_text(config)
    length = settings.length
    if length is not None and longest is not None:
        length = min(length, longest)
    rule = block_rule(settings.dataset, tokenizer, config, length=length, normalize_text8=settings.normalize_text8)
    if rule.length is None:
        raise ValueError(f"{settings.model} does not say how long its texts are: pass length.")
    corpus = rule.load(settings.dataset, settings.split or evaluation_split(settings.dataset))

    if settings.stride is not None:
        return windows_of(corpus, tokenizer, config, rule.length, settings)
    blocks = rule.cut(corpus, tokenizer, drop_last=False)
    if settings.num_texts is not None:
        blocks = blocks.select(range(min(settings.num_texts, len(blocks))))
    blocks = blocks.with_format("numpy")
    return [row["input_ids"][row["attention_mask"] == 1].tolist() for row in blocks], None


def windows_of(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    config,
    length: int,
    settings: EvaluationSettings,
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Windows of `length` tokens on every document, the start token in front, and which of their tokens to score."""
    start = getattr(config, "bos_token_id", None)
    prefix = [] if start is None else [start]
    not_scored = torch.zeros(len(prefix), dtype=torch.bool, device="cpu")

    ids = []
    scored = []
    for text in corpus["text"]:
        found = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        tokens = torch.tensor(found, device="cpu")
        if not len(tokens):
            continue
        for row, counts in zip(*document_windows(tokens, length - len(prefix), settings.stride), strict=True):
            ids.append(prefix + row.tolist())
            scored.append(torch.cat([not_scored, counts]))
            if len(ids) == settings.num_texts:
                return ids, scored
    return ids, scored
