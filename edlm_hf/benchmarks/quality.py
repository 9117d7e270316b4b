"""`edlm benchmark quality`: MDLM, EDLM with every energy, and the AR model at equal work.

Each sampler ("arm") runs at every number of steps T: a bound of its likelihood on every set of
texts, and samples with their generative perplexity, entropy and cost. Work is network FLOPs (calls
times the operations of a forward pass) and seconds. The same command goes on after an interruption,
see `parts.py`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import edlm_hf
from edlm_hf.benchmarks.candidate_profile import add_sums, profile
from edlm_hf.benchmarks.parts import digest_of_rows, digest_of_source
from edlm_hf.benchmarks.quality_arms import MDLM, Arm, arms_of
from edlm_hf.benchmarks.quality_figures import plot
from edlm_hf.benchmarks.quality_report import markdown
from edlm_hf.benchmarks.quality_samples import generate_samples
from edlm_hf.benchmarks.quality_settings import QUICK, QualitySettings
from edlm_hf.benchmarks.report import Progress, as_dict, environment, write_results
from edlm_hf.benchmarks.study import Study
from edlm_hf.benchmarks.text_sets import TextSet
from edlm_hf.checkpoints import locate
from edlm_hf.evaluation import (
    Estimate,
    LikelihoodEstimate,
    autoregressive_nll,
    discrete_nelbo,
    distinct_n,
    generative_perplexity,
    nelbo,
    sampler_bound,
    unigram_entropy,
    word_entropy,
)
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.loading import load_causal, load_tokenizer


class QualityStudy(Study):
    """The measurements of every arm.

    Raises:
        ValueError: nothing to judge with, a composite without an NCE energy or of another denoiser,
            two NCE energies of one scope, or as `Study`.
    """

    settings: QualitySettings

    def __init__(self, settings: QualitySettings, output: Path):
        super().__init__(settings, output)
        if self.causal is None and settings.judge is None:
            raise ValueError("Nothing judges the samples: give judge, or autoregressive (an AR model, also an arm).")

        # The energies of the settings, and the one of the model if it is a composite itself
        composites = [self.load(name) for name in settings.nce]
        if getattr(self.network.config, "energy_type", "none") == "nce":
            composites.append(self.network)
        self.arms = arms_of(self, composites)

    def arms_and_steps(self) -> Iterator[tuple[Arm, int | None]]:
        """Every arm at every T: None for the AR model and for MDLM in continuous time."""
        for arm in self.arms:
            if not arm.causal:
                for steps in self.settings.steps:
                    yield arm, steps
            if not arm.has_energy:
                yield arm, None

    def inner_copies(self, arm: Arm) -> tuple[int | None, ...]:
        """Values of m, None for arms whose bound has no m."""
        return self.settings.inner_copies if arm.has_energy else (None,)

    def sampler_identity(self, arm: Arm, steps: int | None) -> dict:
        """What the samples and bounds of an arm depend on."""
        # The version too: another one may draw other samples from the same seed
        identity = {
            "version": edlm_hf.__version__,
            "arm": arm.name,
            "weights": arm.identity,
            "prompt": self.prompt,
            "steps": steps,
            "length": self.length,
        }

        # Without an energy neither plays a part: MDLM is not sampled anew for another k or w
        if arm.has_energy:
            identity["num_candidates"] = self.settings.num_candidates
            identity["window"] = self.settings.window
        return identity

    def samples(self, arm: Arm, steps: int | None, seed: int) -> dict:
        """Samples as `generate_samples` makes them."""
        inputs = {
            **self.sampler_identity(arm, steps),
            "seed": seed,
            "count": self.settings.num_generated,
            "batch_size": self.settings.batch_size,
            "wraps": self.wraps,
            "device": self.device.type,
        }
        return self.parts("samples", inputs, lambda: generate_samples(self, arm, steps, seed))

    def quality(self, rows: list[list[int]]) -> dict:
        """Quality and diversity of samples, None where there are too few words."""
        inputs = {
            "version": edlm_hf.__version__,
            "rows": digest_of_rows(rows),
            "judge": self.judge_digest,
            "vocabulary": self.vocabulary_digest,
        }
        return self.parts("quality", inputs, lambda: self.judge_rows(rows))

    @functools.cached_property
    def judge_digest(self) -> str:
        """Hash of the judge, or its name where it is on the Hub."""
        judge = self.settings.judge
        return self.causal_digest if judge is None else digest_of_source(locate(judge))

    def judge_rows(self, rows: list[list[int]]) -> dict:
        """Every measure of quality and diversity, each with its standard error."""
        texts = self.decode(rows)

        # An untrained model may write no word at all, or never two in a text
        most_words = max(len(text.split()) for text in texts)
        return {
            "generative_perplexity": as_dict(self.perplexity(rows)),
            "unigram_entropy": as_dict(unigram_entropy(rows)),
            "word_entropy": as_dict(word_entropy(texts)),
            "distinct_2": as_dict(distinct_n(texts, 2) if most_words > 1 else None),
            "known_words": as_dict(self.known_words(texts) if most_words else None),
        }

    def perplexity(self, rows: list[list[int]]) -> Estimate:
        """Perplexity under the judge or the AR model, with its standard error over samples."""
        batch_size = self.settings.batch_size
        if self.settings.judge is None:
            causal = self.causal.to(self.device)
            scored = self.scored(rows)
            nll = autoregressive_nll(causal, rows, scored=scored, batch_size=batch_size)
            value = nll.perplexity.value

            # d exp(nll) = exp(nll) d nll, with the error over texts
            error = value * nll.text_standard_error
            return Estimate(value, error, len(rows), "perplexity")

        # The judge gets the start token that it begins texts with, and the ends of texts that it knows
        judge, tokenizer = self.judge
        has_start = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        same_end = tokenizer.eos_token == self.tokenizer.eos_token
        texts = self.decode(rows, keep_special=self.wraps and same_end)

        # Each window of the judge begins in the middle of the one before
        text_config = judge.config.get_text_config()
        context = getattr(text_config, "max_position_embeddings", None) or 2
        stride = max(1, context // 2)
        return generative_perplexity(
            texts,
            judge,
            tokenizer,
            batch_size=batch_size,
            stride=stride,
            add_start_token=has_start,
        )

    @functools.cached_property
    def judge(self):
        """The judge and its tokenizer."""
        name = self.settings.judge
        return load_causal(name).to(self.device), load_tokenizer(name)

    def bound(self, arm: Arm, steps: int | None, inner_copies: int | None, texts: TextSet) -> dict:
        """The bound of an arm on a set of texts: nats per token and bits per character."""
        rows = texts.rows(self.settings.num_texts)
        inputs = {
            **self.sampler_identity(arm, steps),
            "inner_copies": inner_copies,
            "rows": digest_of_rows(rows),
            "noise_samples": self.settings.noise_samples,
            "seed": self.settings.seeds[0],
        }
        return self.parts("bound", inputs, lambda: self.score(arm, steps, inner_copies, rows))

    def score(self, arm: Arm, steps: int | None, inner_copies: int | None, rows: list[list[int]]) -> dict:
        """Measure a bound, or the exact likelihood of the AR model."""
        measure, options = self.measure(arm, steps, inner_copies, rows)
        model = arm.model.to(self.device)
        nll: LikelihoodEstimate = measure(model, rows, batch_size=self.settings.batch_size, **options)

        # Bits per character compare models whose tokens differ. The nats of every text are for pairing
        num_characters = sum(len(text) for text in self.decode(rows))
        return {
            "bound": measure.__name__,
            "nats_per_token": as_dict(nll),
            "bits_per_character": as_dict(nll.bits_per("character", num_characters)),
            "sequence_nats": nll.sequence_nats,
            "sequence_tokens": nll.sequence_tokens,
        }

    def measure(
        self, arm: Arm, steps: int | None, inner_copies: int | None, rows: list[list[int]]
    ) -> tuple[Callable, dict]:
        """The function that scores an arm, and its options."""
        if arm.causal:
            return autoregressive_nll, {"scored": self.scored(rows)}

        # The same seed for all arms, so that the noise of paired bounds is the same
        options = {
            "num_samples": self.settings.noise_samples,
            "seed": self.settings.seeds[0],
        }

        # MDLM in continuous time, then at T steps
        if steps is None:
            return nelbo, options
        options["num_steps"] = steps
        if inner_copies is None:
            return discrete_nelbo, options

        # EDLM: the bound of the sampler that ships, with its k and w
        options["inner_copies"] = inner_copies
        options["num_candidates"] = self.settings.num_candidates
        options["energy_window"] = self.settings.window
        return sampler_bound, options

    def sample_row(self, arm: Arm, steps: int | None, progress: Progress) -> dict:
        """Quality and cost of the samples of an arm at T, over all seeds."""
        batches = []
        for seed in self.settings.seeds:
            batches.append(self.samples(arm, steps, seed))
            progress.finish_one()

        # All seeds are judged together: the standard errors are over all samples
        rows = [row for batch in batches for row in batch["ids"]]
        quality = self.quality(rows)
        progress.finish_one()

        # How unequal the weights of the candidates were, step by step, over all batches
        profile_of_steps = profile(add_sums([batch["steps"] for batch in batches]))
        return {
            "samples": arm.name,
            "steps": steps,
            "num_samples": len(rows),
            **quality,
            **self.cost(arm, batches),
            "profile": profile_of_steps,
        }

    def cost(self, arm: Arm, batches: list[dict]) -> dict:
        """Network calls, operations and seconds per sample."""
        calls = {}
        for name in ("denoiser_calls", "energy_calls"):
            by_sample = [number for batch in batches for number in batch[name]]
            calls[name] = mean_estimate(by_sample, "calls/sample")

        # Each call counts as a whole forward pass. The AR model's operations are of a whole sample.
        passes = 1 if arm.causal else calls["denoiser_calls"].value
        energies = calls["energy_calls"].value * self.settings.num_candidates
        flops = passes * arm.flops + energies * arm.energy_flops

        # Seconds of whole batches, so that they depend on the batch size: the report names it
        num_samples = sum(len(batch["ids"]) for batch in batches)
        seconds = sum(batch["seconds"] for batch in batches)
        return {
            "denoiser_calls": as_dict(calls["denoiser_calls"]),
            "energy_calls": as_dict(calls["energy_calls"]),
            "gigaflops_per_sample": flops / 1e9,
            "seconds_per_sample": seconds / num_samples,
            "hardware": sorted({batch["hardware"] for batch in batches}),
        }

    def text_row(self, texts: TextSet) -> dict:
        """The quality of as many texts as there are samples."""
        rows = self.without_prompt(texts.rows(self.settings.num_samples))
        return {
            "samples": f"data: {texts.name}",
            "steps": None,
            "num_samples": len(rows),
            **self.quality(rows),
        }


def run_study(settings: QualitySettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything, and renew results.json and results.md after every arm and T.

    Args:
        advance: called with (parts finished, parts in all, what runs now).

    Raises:
        ValueError: as `QualityStudy`, the corpora and the measurements.
    """
    output.mkdir(parents=True, exist_ok=True)
    study = QualityStudy(settings, output)
    progress = Progress(advance, number_of_parts(study))
    result = {
        "environment": environment(study.device),
        "settings": dataclasses.asdict(settings),
        "length": study.length,
        "samples": [],
        "bounds": [],
    }

    # 1. The texts themselves
    progress.start("data")
    for texts in study.texts:
        result["samples"].append(study.text_row(texts))
        progress.finish_one()

    # 2. Samples and bounds of every arm at every T
    for arm, steps in study.arms_and_steps():
        progress.start(arm.name if steps is None else f"{arm.name} T={steps}")
        if is_sampled(arm, steps):
            result["samples"].append(study.sample_row(arm, steps, progress))

        # MDLM is the first arm, so that its bound is there when the others are compared with it
        for texts, copies in itertools.product(study.texts, study.inner_copies(arm)):
            row = {
                "arm": arm.name,
                "steps": steps,
                "inner_copies": copies,
                "data": texts.name,
                **study.bound(arm, steps, copies, texts),
            }
            row["minus_mdlm"] = minus_mdlm(row, result["bounds"])
            result["bounds"].append(row)
            progress.finish_one()
        write_results(result, markdown(result), output)

    # 3. Plots
    result["plots"] = plot(result, output)
    write_results(result, markdown(result), output)
    return result


def is_sampled(arm: Arm, steps: int | None) -> bool:
    """Whether an arm makes samples at T: MDLM in continuous time is a bound only."""
    return arm.causal or steps is not None


def number_of_parts(study: QualityStudy) -> int:
    """Samples of every seed and their quality, bounds, and the quality of every set of texts."""
    parts = len(study.texts)
    for arm, steps in study.arms_and_steps():
        if is_sampled(arm, steps):
            parts += len(study.settings.seeds) + 1

        # A bound on every set of texts, for every m
        parts += len(study.texts) * len(study.inner_copies(arm))
    return parts


def minus_mdlm(bound: dict, others: list[dict]) -> dict | None:
    """Nats per token of a bound less the bound of MDLM at the same T.

    Texts and noise are the same. The standard error, over texts, is of the paired difference. None
    if `others` hold no such bound of MDLM.
    """
    if bound["arm"] == MDLM or bound["steps"] is None:
        return None

    texts_and_steps = (bound["data"], bound["steps"])
    for other in others:
        if other["arm"] != MDLM or (other["data"], other["steps"]) != texts_and_steps:
            continue

        # Text by text: what makes a text hard for both cancels, and the error shrinks
        pairs = zip(bound["sequence_nats"], other["sequence_nats"], strict=True)
        differences = [nats - nats_of_mdlm for nats, nats_of_mdlm in pairs]
        per_token = ratio_estimate(differences, other["sequence_tokens"], "nats/token")
        return as_dict(per_token)
    return None


__all__ = ["QUICK", "QualitySettings", "QualityStudy", "minus_mdlm", "run_study"]
