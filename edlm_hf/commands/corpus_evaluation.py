"""One model on one corpus: what `edlm evaluate` does."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf import evaluation
from edlm_hf.commands.evaluate import EvaluationSettings
from edlm_hf.data import block_rule, document_windows
from edlm_hf.data.block_rules import evaluation_split
from edlm_hf.data.corpus import Corpus
from edlm_hf.data.encoder import Encoder
from edlm_hf.evaluation import Estimate, HProfile, LikelihoodEstimate
from edlm_hf.evaluation.texts import Texts, read_texts
from edlm_hf.hidden_secrets import hide_in_values
from edlm_hf.loading import load_causal, load_config, load_masked, load_tokenizer
from edlm_hf.modeling.network_facts import longest_text
from edlm_hf.processes import connected
from edlm_hf.terminal import tell

# Numbers that only the bound of a sampler looks at, and discrete_nelbo at the first of them
BOUND_SETTINGS = ("num_steps", "num_candidates", "inner_copies", "energy_window")
LIKELIHOOD_COLUMNS = (
    "metric",
    "nats/token",
    "perplexity",
    "bits/character",
    "texts",
    "noise samples",
)


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
        """What `--json` prints: the settings, the size of the corpus, and every metric in every unit."""
        # 1. What was run. An address may hold a password
        described = {
            "model": self.settings.model,
            "data": self.settings.dataset,
            "dtype": self.settings.dtype,
            "settings": self.recorded_settings(),
        }
        result = hide_in_values(described)

        # 2. On how much text
        result["num_texts"] = len(self.texts.ids)
        result["num_tokens"] = int(self.texts.counts.sum())
        result["num_characters"] = self.characters

        # 3. The metrics, in the order in which they were asked for
        result["metrics"] = {}
        for name, found in self.metrics.items():
            result["metrics"][name] = self.metric_to_dict(found)
        return result

    def metric_to_dict(self, found: LikelihoodEstimate | HProfile) -> dict:
        """A profile as times t and entropies h(t), a likelihood in nats per token and in two other units."""
        if isinstance(found, HProfile):
            entropies = [entropy.to_dict() for entropy in found.entropies]
            return {"times": list(found.times), "entropies": entropies}

        return {
            **found.to_dict(),
            "perplexity": found.perplexity.to_dict(),
            "bits_per_character": self.bits_per_character(found).to_dict(),
        }

    def recorded_settings(self) -> dict:
        """The settings by the names that they have in every file of results."""
        settings = asdict(self.settings)
        settings["data"] = settings.pop("dataset")

        # true -> "text8", false -> "none", null where the tokenizer decided
        normalize = settings.pop("normalize_text8")
        if normalize is not None:
            normalize = "text8" if normalize else "none"
        settings["normalize"] = normalize
        settings["sampler_options"] = self.sampler_options
        return settings

    def bits_per_character(self, found: LikelihoodEstimate):
        """Bits per character. A metric that counts fewer tokens has their share of the characters."""
        if not self.characters:
            return Estimate(math.nan, math.nan, found.num_samples, "bits/character")

        share = self.characters * found.num_tokens / float(self.texts.counts.sum())
        return found.bits_per("character", share)

    def markdown(self) -> str:
        """Likelihoods, with the error of the noise and in brackets that over texts; and the profile h(t)."""
        # 1. A table for each profile: t, and h(t) in nats per masked token
        profiles = []
        for name, found in self.metrics.items():
            if not isinstance(found, HProfile):
                continue
            profiles.append([f"{name}, t", "nats/masked token"])
            profiles.append(["---"] * 2)
            for t, entropy in zip(found.times, found.entropies, strict=True):
                profiles.append([f"{t:.3g}", entropy.rounded()])

        # 2. One table of all likelihoods, left out where only profiles were asked for
        likelihoods = []
        for name, found in self.metrics.items():
            if not isinstance(found, LikelihoodEstimate):
                continue
            cells = [
                name,
                f"{found.rounded()} ({found.text_standard_error:.2g})",
                found.perplexity.rounded(),
                self.bits_per_character(found).rounded(),
                str(len(found.sequence_nats)),
                str(found.num_samples),
            ]
            likelihoods.append(cells)
        if profiles and not likelihoods:
            return lines_of_table(profiles)

        # 3. The likelihoods first, an empty line, then the profiles
        page = lines_of_table([LIKELIHOOD_COLUMNS, ["---"] * len(LIKELIHOOD_COLUMNS), *likelihoods])
        if profiles:
            page += "\n" + lines_of_table(profiles)
        return page


def lines_of_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of a Markdown table, each with its line end."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
    check_used(settings, sampler_options)

    # 1. The model. Only the likelihood of an AR model is measured on a causal network
    config = load_config(settings.model)
    tokenizer = load_tokenizer(settings.tokenizer or settings.model)
    dtype = settings.dtype or "auto"
    needs_masked = any(metric != "autoregressive_nll" for metric in settings.metrics)
    if config.model_type == "edlm" or needs_masked:
        model = load_masked(settings.model, tokenizer, dtype=dtype)
    else:
        model = load_causal(settings.model, dtype=dtype)

    # 2. The texts. The main process leaves the blocks in the cache for the others
    with connected().main_process_first():
        ids, scored = load_texts(settings, tokenizer, model.config)
    texts = read_texts(model.config, ids, scored=scored)

    # 3. The characters of the tokens that count, for bits per character. An end token has none
    counted = [row[keep] for row, keep in zip(texts.ids, texts.scored, strict=True)]
    decoded = tokenizer.batch_decode(counted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    characters = sum(len(text) for text in decoded)

    # 4. The metrics
    model = model.to(settings.device)
    common = {
        "scored": scored,
        "distributed": True,
        "progress_bar": progress_bar,
    }
    metrics = {}
    for name in settings.metrics:
        measure = getattr(evaluation, name)
        options = metric_options(settings, name, sampler_options)
        metrics[name] = measure(model, ids, **common, **options)
    return Evaluation(settings, sampler_options, texts, characters, metrics)


def check_used(settings: EvaluationSettings, sampler_options: dict) -> None:
    """Raise ValueError if a sampler is given that no metric would look at, and tell so of its numbers."""
    if "sampler_bound" in settings.metrics:
        return
    metrics = ", ".join(settings.metrics)
    if sampler_options:
        raise ValueError(
            f"{', '.join(sampler_options)} can only change sampler_bound, but metrics is {metrics}. Add sampler_bound."
        )

    # T counts for the denoiser alone, too
    unused = [name for name in BOUND_SETTINGS if name != "num_steps" or "discrete_nelbo" not in settings.metrics]
    given = [field.name for field in fields(settings) if getattr(settings, field.name) != field.default]
    ignored = [name for name in unused if name in given]
    if ignored:
        tell(f"{', '.join(ignored)} changes nothing: metrics is {metrics}, without sampler_bound.")


def metric_options(settings: EvaluationSettings, metric: str, sampler_options: dict) -> dict:
    """Arguments of a metric that follow from the settings."""
    options = {"batch_size": settings.batch_size}

    # The AR likelihood is exact: there is no noise
    if metric != "autoregressive_nll":
        options["num_samples"] = settings.num_samples
        options["seed"] = settings.seed

    # T where time is discrete
    if metric in ("discrete_nelbo", "sampler_bound"):
        options["num_steps"] = settings.num_steps

    # k, m and w, and the sampler whose bound it is
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
    # 1. How long a text is: as long as asked for, but no longer than the model can read
    longest = longest_text(config)
    length = settings.length
    if length is not None and longest is not None:
        length = min(length, longest)

    # 2. The corpus, in the alphabet of the tokenizer
    rule = block_rule(
        settings.dataset,
        tokenizer,
        config,
        length=length,
        normalize_text8=settings.normalize_text8,
    )
    if rule.length is None:
        raise ValueError(f"{settings.model} does not say how long its texts are: pass length.")
    split = settings.split or evaluation_split(settings.dataset)
    corpus = rule.load(settings.dataset, split, text_column=settings.text_column)

    # 3. Windows on each document, or blocks of all documents joined, the last one shorter
    if settings.stride is not None:
        return windows_of(corpus, tokenizer, config, rule.length, settings)
    blocks = rule.cut(corpus, tokenizer, drop_last=False)
    if settings.num_texts is not None:
        blocks = blocks.select(range(min(settings.num_texts, len(blocks))))

    # Without the padding of the last block
    blocks = blocks.with_format("numpy")
    ids = [row["input_ids"][row["attention_mask"] == 1].tolist() for row in blocks]
    return ids, None


def windows_of(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    config,
    length: int,
    settings: EvaluationSettings,
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Windows of `length` tokens on every document, the start token in front, and which of their tokens to score."""
    # The start token is given, and takes one of the places of every window
    start = getattr(config, "bos_token_id", None)
    prefix = [] if start is None else [start]
    not_scored = torch.zeros(len(prefix), dtype=torch.bool, device="cpu")
    room = length - len(prefix)
    if room < 1:
        raise ValueError(f"length is {length}, but with the start token it must be at least 2.")

    # Read as in blocks: what spells a special token stays text, a missing document is empty
    encoder = Encoder(tokenizer, separator=None)
    ids = []
    scored = []
    for text in corpus["text"]:
        tokens = torch.from_numpy(encoder([text]).astype("int64"))
        if not len(tokens):
            continue

        # (N, room) each. Every token of the document counts in exactly one window
        windows, counted = document_windows(tokens, room, settings.stride)
        for row, counts in zip(windows, counted, strict=True):
            ids.append(prefix + row.tolist())
            scored.append(torch.cat([not_scored, counts]))
            if len(ids) == settings.num_texts:
                return ids, scored
    return ids, scored
