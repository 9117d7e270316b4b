"""`edlm benchmark samplers`: the likelihood, samples and time of each way to sample.

All of them run on the same model: rules of revealing masks, with an energy or without, and the AR
model that judges, for comparison. Bounds are on the same texts, and their differences to ancestral
sampling are paired text by text. Samples come with their quality, calls and seconds. The same
command goes on after an interruption, and one with more samplers computes only the new ones, see
`parts.py`.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import edlm_hf
from edlm_hf.benchmarks import samplers_figure, speculative_figure
from edlm_hf.benchmarks.left_to_right import sample_left_to_right
from edlm_hf.benchmarks.parts import digest_of_rows
from edlm_hf.benchmarks.report import Progress, as_dict, environment, hardware, write_results
from edlm_hf.benchmarks.samplers_report import markdown
from edlm_hf.benchmarks.samplers_settings import AUTOREGRESSIVE, QUICK, SamplerArm, SamplerSettings
from edlm_hf.benchmarks.study import SEEDS_OF_BATCHES, Study
from edlm_hf.benchmarks.text_sets import TextSet
from edlm_hf.benchmarks.timing import seconds_now
from edlm_hf.evaluation import (
    Estimate,
    LikelihoodEstimate,
    autoregressive_nll,
    distinct_n,
    sampler_bound,
    unigram_entropy,
)
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput

ANCESTRAL, FIRST_HITTING = "ancestral", "first_hitting"
PER_CHARACTER = "bits/character"

# Texts of every sampler that stand in the results, the first ones
NUM_SHOWN = 5


class SamplerStudy(Study):
    """The measurements of every sampler.

    Raises:
        ValueError: as `Study`, or a sampler names an energy that the model does not have.
    """

    settings: SamplerSettings

    def __init__(self, settings: SamplerSettings, output: Path):
        super().__init__(settings, output)

        # A missing energy is an error now, not after hours of measurements
        for arm in settings.arms():
            self.weighed_by(arm.energy)

    def measurement_identity(self, arm: SamplerArm) -> dict:
        """What every measurement of an arm depends on."""
        identity = {
            "version": edlm_hf.__version__,
            "weights": self.identity,
            "length": self.length,
            **arm.identity(),
            "seed": self.settings.seed,
            "dtype": self.settings.dtype,
        }
        if arm.energy is not None:
            _, identity["energy_weights"] = self.weighed_by(arm.energy)
        return identity

    def bound(self, arm: SamplerArm, texts: TextSet) -> dict:
        """Nats of every text, and bits per character of all of them."""
        rows = texts.rows(self.settings.num_texts)
        inputs = {
            **self.measurement_identity(arm),
            "rows": digest_of_rows(rows),
            "noise_samples": self.settings.noise_samples,
        }

        # Other bounds have no m, and are not measured anew for another one
        if arm.is_weighed:
            inputs["inner_copies"] = self.settings.inner_copies
        return self.parts("bound", inputs, lambda: self.score(arm, rows))

    def score(self, arm: SamplerArm, rows: list[list[int]]) -> dict:
        """Measure the likelihood of texts, and the seconds that it takes."""
        began = seconds_now(self.device)
        nll = self.likelihood(arm, rows)

        # Texts are the clusters: a ratio of sums, with its error over texts
        characters = [len(text) for text in self.decode(rows)]
        per_character = ratio_estimate(bits(nll.sequence_nats), characters, PER_CHARACTER)

        # The part of the error that more noise samples on the same texts would reduce
        with_noise_error = nll.bits_per("character", sum(characters))
        return {
            "bits_per_character": as_dict(per_character),
            "noise_standard_error": with_noise_error.standard_error,
            "sequence_nats": nll.sequence_nats,
            "sequence_characters": characters,
            "seconds": seconds_now(self.device) - began,
            "hardware": hardware(self.device),
        }

    def likelihood(self, arm: SamplerArm, rows: list[list[int]]) -> LikelihoodEstimate:
        """Nats of the texts: of the AR model where it is what the arm samples from, otherwise a bound."""
        if arm.is_autoregressive:
            causal = self.causal.to(self.device)
            scored = self.scored(rows)
            return autoregressive_nll(causal, rows, scored=scored, batch_size=self.settings.batch_size)

        # The bound of the sampler that ships: its rule, T, k and m
        options = arm.options("num_steps")
        if arm.is_weighed:
            options["inner_copies"] = self.settings.inner_copies
        model, _ = self.weighed_by(arm.energy)
        return sampler_bound(
            model,
            rows,
            num_samples=self.settings.noise_samples,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            **options,
        )

    def samples(self, arm: SamplerArm) -> dict:
        """Ids, calls and seconds of `num_generated` samples."""
        inputs = {
            **self.measurement_identity(arm),
            "count": self.settings.num_generated,
            "batch_size": self.settings.batch_size,
            "prompt": self.prompt,
            "device": self.device.type,
        }
        return self.parts("samples", inputs, lambda: self.draw_samples(arm))

    def draw_samples(self, arm: SamplerArm) -> dict:
        """Draw samples in batches, each with its own seed and seconds, after a warm-up of one sample."""
        count = self.settings.num_generated
        size = self.settings.batch_size

        # Two steps are enough to load kernels and to reserve memory
        if arm.steps is None:
            warm_up = arm
        else:
            warm_up = dataclasses.replace(arm, steps=min(arm.steps, 2))
        self.sample_batch(warm_up, 1, seed=0)

        # Every batch has a seed of its own, so that the number of batches does not change the others
        outputs = []
        seconds = []
        for number, finished in enumerate(range(0, count, size)):
            began = seconds_now(self.device)
            seed = self.settings.seed * SEEDS_OF_BATCHES + number
            num_rows = min(size, count - finished)
            outputs.append(self.sample_batch(arm, num_rows, seed))
            seconds.append(seconds_now(self.device) - began)

        # Lists, since the parts are JSON: (count, L) ids, and (count,) calls of either network
        return {
            "ids": [row for output in outputs for row in output.sequences.tolist()],
            "calls": torch.cat([output.num_denoiser_calls for output in outputs]).tolist(),
            "energy_calls": torch.cat([output.num_energy_calls for output in outputs]).tolist(),
            "seconds": seconds,
            "hardware": hardware(self.device),
        }

    def sample_batch(self, arm: SamplerArm, count: int, seed: int) -> EDLMGenerationOutput:
        """`count` samples (count, L) without the start token in front of them."""
        # The AR model draws from torch's global generator, whose state is the caller's
        if arm.sampler == AUTOREGRESSIVE:
            cuda_devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(cuda_devices):
                torch.manual_seed(seed)
                return sample_left_to_right(self, count)

        model, _ = self.weighed_by(arm.energy)
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.generate(model, count, generator, **arm.options("max_denoising_steps"))

    def quality(self, rows: list[list[int]]) -> dict:
        """Quality and diversity of samples without start tokens."""
        inputs = {
            "version": edlm_hf.__version__,
            "rows": digest_of_rows(rows),
            "judge": self.causal_digest,
            "vocabulary": self.vocabulary_digest,
            "num_shown": NUM_SHOWN,
        }
        return self.parts("judged", inputs, lambda: self.judge_rows(rows))

    def judge_rows(self, rows: list[list[int]]) -> dict:
        """Bits of the samples under the AR model, their diversity, and the first of their texts."""
        texts = self.decode(rows)
        judge = self.causal.to(self.device)
        scored = self.scored(rows)
        nll = autoregressive_nll(judge, rows, scored=scored, batch_size=self.settings.batch_size)

        # Per character, as the bounds are, so that both can stand in one plot
        characters = [len(text) for text in texts]
        judge_bits = ratio_estimate(bits(nll.sequence_nats), characters, PER_CHARACTER)
        return {
            "judge_bits": as_dict(judge_bits),
            "known_words": as_dict(self.known_words(texts)),
            "unigram_entropy": as_dict(unigram_entropy(rows)),
            "distinct_2": as_dict(distinct_n(rows, 2)),
            "texts": texts[:NUM_SHOWN],
        }

    def sample_row(self, arm: SamplerArm) -> dict:
        """Quality and cost of the samples of an arm. Seconds are the median over whole batches."""
        samples = self.samples(arm)
        size = self.settings.batch_size
        num_samples = len(samples["ids"])

        # A smaller last batch takes longer per sample, and counts only if it is alone
        whole_batches = num_samples // size or 1
        seconds_per_sample = [seconds / size for seconds in samples["seconds"][:whole_batches]]

        return {
            **sampler_columns(arm),
            "num_samples": num_samples,
            **self.quality(samples["ids"]),
            "calls": as_dict(mean_estimate(samples["calls"], "calls/sample")),
            "energy_calls": as_dict(mean_estimate(samples["energy_calls"], "calls/sample")),
            "seconds_per_sample": statistics.median_high(seconds_per_sample),
            "hardware": samples["hardware"],
        }

    def text_row(self, texts: TextSet) -> dict:
        """The quality of as many texts as there are samples of a sampler."""
        rows = self.without_prompt(texts.rows(self.settings.num_generated))
        return {
            "rule": f"text: {texts.name}",
            "steps": None,
            "num_samples": len(rows),
            **self.quality(rows),
        }


def run_samplers(settings: SamplerSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything. results.json and results.md in `output` are renewed after every arm.

    Args:
        advance: called with (measurements finished, all of them, what runs now).

    Raises:
        ValueError: as `Study` and the measurements.
    """
    output.mkdir(parents=True, exist_ok=True)
    study = SamplerStudy(settings, output)
    arms = settings.bounded_arms()
    sampled_arms = settings.sampled_arms()
    progress = Progress(advance, len(arms) * len(study.texts) + len(sampled_arms))
    result = {
        "environment": environment(study.device),
        "settings": dataclasses.asdict(settings),
        "length": study.length,
        "bounds": [],
        "samples": [],
    }

    # 1. Bounds, with their differences to ancestral sampling as far as it is measured
    for texts in study.texts:
        for arm in arms:
            progress.start(f"{texts.name}: {arm.label}")
            row = {
                "data": texts.name,
                **sampler_columns(arm),
                **study.bound(arm, texts),
            }
            result["bounds"].append(row)
            add_differences(result["bounds"])
            write_results(result, markdown(result), output)
            progress.finish_one()

    # 2. Samples, below the texts themselves
    if sampled_arms:
        result["samples"] = [study.text_row(texts) for texts in study.texts]
    for arm in sampled_arms:
        progress.start(f"samples: {arm.label}")
        result["samples"].append(study.sample_row(arm))
        write_results(result, markdown(result), output)
        progress.finish_one()

    # 3. The plots
    result["plots"] = [
        *samplers_figure.plot(result, output),
        *speculative_figure.plot(result, output),
    ]
    write_results(result, markdown(result), output)
    return result


def sampler_columns(arm: SamplerArm) -> dict:
    """The sampler and T in a row of the results."""
    return {"rule": arm.rule, "steps": arm.steps}


def bits(nats: Sequence[float]) -> list[float]:
    return [value / math.log(2) for value in nats]


def add_differences(bounds: list[dict]) -> None:
    """Give every bound `minus_ancestral`, its differences to ancestral sampling on the same texts.

    They are a list of dictionaries. `steps` is T of ancestral sampling, None for infinitely many.
    `difference` is in bits per character, with the standard error of the paired difference over
    texts, the noise of both bounds included.
    """
    # All rows anew after each measurement: the ancestral bound of an early row may come later
    for row in bounds:
        row["minus_ancestral"] = []
        for other in ancestral_bounds(bounds, row["data"]):
            if other is row:
                continue
            paired = {
                "steps": other["steps"],
                "difference": as_dict(difference(row, other)),
            }
            row["minus_ancestral"].append(paired)


def ancestral_bounds(bounds: list[dict], data: str) -> list[dict]:
    """The bounds of ancestral sampling on one set of texts, and of its limit for many steps."""
    rules = (ANCESTRAL, FIRST_HITTING)
    return [row for row in bounds if row["data"] == data and row["rule"] in rules]


def difference(row: dict, other: dict) -> Estimate:
    """Bits per character of one bound less another on the same texts."""
    pairs = zip(row["sequence_nats"], other["sequence_nats"], strict=True)
    differences = [nats - other_nats for nats, other_nats in pairs]
    return ratio_estimate(bits(differences), row["sequence_characters"], PER_CHARACTER)


__all__ = ["QUICK", "SamplerSettings", "SamplerStudy", "run_samplers"]
