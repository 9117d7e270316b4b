"""`edlm benchmark samplers`: what each rule of revealing masks costs in likelihood, samples and time.

Every sampler runs on the same model without an energy: bounds on the same texts, whose differences to ancestral
sampling are paired text by text, and samples with their quality, calls and seconds.

As in `quality.py`, every finished measurement is a file of its own under `parts`, found again by all that it depends
on: the same command goes on after an interruption, and one with more samplers computes the new ones only.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import edlm_hf
from edlm_hf.benchmarks.quality import MDLM, QualitySettings, Study, TextSet, as_dict, digest_of
from edlm_hf.benchmarks.report import environment, hardware, write_results
from edlm_hf.benchmarks.samplers_report import markdown, plot
from edlm_hf.evaluation import (
    Estimate,
    autoregressive_nll,
    sampler_bound,
    spelling_accuracy,
    unigram_entropy,
)
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.modeling.sampler_choice import make_sampler
from edlm_hf.options import value_of

ANCESTRAL, FIRST_HITTING = "ancestral", "first_hitting"
PER_CHARACTER = "bits/character"

# The rules and the values of T, those of `SamplerSettings.steps` unless given after @
SAMPLERS = (
    "ancestral @2,4,8,16,32,64,128,256,1024",
    "first_hitting",
    "dilated",
    "spaced score=random distance=8",
    "spaced score=entropy distance=4",
    "spaced score=entropy distance=8",
    "spaced score=entropy distance=16",
    "spaced score=confidence distance=8",
    "spaced score=margin distance=8",
    "top_k score=entropy",
    "entropy_bound gamma=0.1",
    "entropy_bound gamma=1.0",
    "entropy_bound gamma=4.0",
    "threshold threshold=0.9",
    "factor factor=1.0",
    "klass",
)


@dataclass(frozen=True)
class SamplerSettings:
    """What is compared, on what, and how much of it.

    Args:
        model: folder or Hub repository of the denoiser and its tokenizer. An energy beside it plays no part.
        data: the sets of texts, as in `QualitySettings`.
        autoregressive: the AR model that judges samples; without one they are not judged.
        vocabulary: corpus whose training split has the known words.
        samplers: each a name, parameters, and values of T: `spaced distance=8 score=entropy @8,16`.
        steps: values of T of the samplers that do not name any.
        num_texts: blocks of each set that are scored. noise_samples: of each, even or 1.
        num_generated: samples for each sampler and T; 0 for bounds alone.
        sampled: the samplers that make samples, all unless given.

    Raises:
        ValueError: a value is out of range, or a sampler does not exist or is given twice.
    """

    model: str
    data: tuple[str, ...]
    autoregressive: str
    vocabulary: str | None = None
    samplers: tuple[str, ...] = SAMPLERS
    steps: tuple[int, ...] = (4, 8, 16, 32)
    num_texts: int = 256
    noise_samples: int = 8
    num_generated: int = 256
    sampled: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 32
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self):
        self.of_quality()  # checks what the two studies share
        if self.num_generated < 0 or self.num_generated == 1:
            raise ValueError(f"num_generated is {self.num_generated}, but it must be 0, or 2 and more for an error.")
        names = [arm.label for arm in self.arms()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"samplers has {', '.join(twice)} more than once. Give each sampler and T once.")
        if unknown := sorted(set(self.sampled) - set(self.samplers)):
            raise ValueError(
                f"sampled has {', '.join(unknown)}, but each must stand in samplers too, letter by letter."
            )

    def arms(self) -> list["Arm"]:
        return [arm for text in self.samplers for arm in arms_of(text, self.steps)]

    def of_quality(self) -> QualitySettings:
        """The settings of the study of quality, whose networks, texts and measurements this one uses."""
        return QualitySettings(
            model=self.model,
            data=self.data,
            autoregressive=self.autoregressive,
            vocabulary=self.vocabulary,
            steps=self.steps,
            num_texts=self.num_texts,
            noise_samples=self.noise_samples,
            num_generated=max(self.num_generated, 2),
            seeds=(self.seed,),
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
        )


@dataclass(frozen=True)
class Arm:
    """A sampler with its parameters and T, None where the sampler does not take a number of steps.

    `text` is what it was called in the settings.
    """

    text: str
    sampler: str
    parameters: tuple[tuple[str, object], ...]
    steps: int | None

    @property
    def rule(self) -> str:
        """The sampler and its parameters in words, without T."""
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.parameters)])

    @property
    def label(self) -> str:
        return self.rule if self.steps is None else f"{self.rule} T={self.steps}"

    def inputs(self) -> dict:
        """What a measurement depends on besides the model and the texts."""
        return {"sampler": self.sampler, "parameters": dict(self.parameters), "steps": self.steps}

    def options(self, steps_name: str) -> dict:
        """Arguments of `generate()` or of a bound, whose names of T differ."""
        options = {"sampler": self.sampler, "num_candidates": 1, **dict(self.parameters)}
        if self.steps is not None:
            options[steps_name] = self.steps
        return options


def arms_of(text: str, steps: tuple[int, ...]) -> list[Arm]:
    """The arms of `NAME [parameter=value ...] [@T,T,...]`, one for every T.

    Raises:
        ValueError: it does not have this form, or the sampler refuses a parameter.
    """
    rule, at, values = text.partition("@")
    name, *pairs = rule.split() or [""]
    split = [pair.partition("=") for pair in pairs]
    if not all(equals for _, equals, _ in split):
        raise ValueError(f"{text!r} is not a sampler like 'spaced distance=8 score=entropy @8,16'.")
    parameters = {key: value_of(value) for key, _, value in split}
    try:
        steps = tuple(int(value) for value in values.split(",")) if at else steps
    except ValueError:
        raise ValueError(f"{text!r} must end with numbers of steps like @8,16, or without @.") from None

    if min(steps) < 1:
        raise ValueError(f"{text!r} has T = {min(steps)}, but T must be positive.")
    if not depends_on_steps(name, parameters):
        steps = (None,)
    return [Arm(text, name, tuple(parameters.items()), number) for number in steps]


def depends_on_steps(name: str, parameters: dict) -> bool:
    """Whether the number of calls of a sampler depends on T."""
    free = torch.ones(1, 8, dtype=torch.bool, device="cpu")
    few, more = (make_sampler(name, num_steps, parameters=parameters).steps_in(free) for num_steps in (2, 3))
    return few != more


class SamplerStudy:
    """The measurements of every arm; one that is finished is not repeated."""

    def __init__(self, settings: SamplerSettings, output: Path):
        self.settings = settings
        self.study = Study(settings.of_quality(), output)
        self.model = next(arm for arm in self.study.arms if arm.name == MDLM)
        self.parts = self.study.parts

    @property
    def texts(self) -> list[TextSet]:
        return self.study.texts

    def identity(self, arm: Arm) -> dict:
        """What every measurement of an arm depends on."""
        weights = {"version": edlm_hf.__version__, "weights": self.model.identity, "length": self.study.length}
        return weights | arm.inputs() | {"seed": self.settings.seed, "dtype": self.settings.dtype}

    def bound(self, arm: Arm, texts: TextSet) -> dict:
        """Nats of every text, and bits per character of them all."""
        rows = texts.rows(self.settings.num_texts)
        inputs = self.identity(arm) | {"rows": digest_of(rows), "noise_samples": self.settings.noise_samples}
        return self.parts("bound", inputs, lambda: self.score(arm, rows))

    def score(self, arm: Arm, rows: list[list[int]]) -> dict:
        began = self.study.now()
        found = sampler_bound(
            self.model.model,
            rows,
            num_samples=self.settings.noise_samples,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            **arm.options("num_steps"),
        )
        characters = [len(text) for text in self.study.decode(rows)]
        per_character = ratio_estimate(bits(found.sequence_nats), characters, PER_CHARACTER)
        return {
            "bits_per_character": as_dict(per_character),
            "noise_standard_error": found.bits_per("character", sum(characters)).standard_error,
            "sequence_nats": found.sequence_nats,
            "sequence_characters": characters,
            "seconds": self.study.now() - began,
            "hardware": hardware(self.study.device),
        }

    def samples(self, arm: Arm) -> dict:
        """Ids, calls and seconds of `num_generated` samples."""
        count, size = self.settings.num_generated, self.settings.batch_size
        inputs = self.identity(arm) | {"count": count, "batch_size": size, "prompt": self.study.prompt}
        return self.parts("samples", inputs | {"device": self.study.device.type}, lambda: self.generate(arm))

    def generate(self, arm: Arm) -> dict:
        count, size = self.settings.num_generated, self.settings.batch_size
        self.draw(dataclasses.replace(arm, steps=arm.steps and min(arm.steps, 2)), 1, seed=0)  # warm-up
        outputs = []
        seconds = []
        for number, done in enumerate(range(0, count, size)):
            began = self.study.now()
            outputs.append(self.draw(arm, min(size, count - done), seed=self.settings.seed * 2**20 + number))
            seconds.append(self.study.now() - began)
        return {
            "ids": [row for output in outputs for row in output.sequences.tolist()],
            "calls": torch.cat([output.num_denoiser_calls for output in outputs]).tolist(),
            "seconds": seconds,
            "hardware": hardware(self.study.device),
        }

    def draw(self, arm: Arm, count: int, seed: int):
        """`count` samples without the start token in front of them."""
        prompt = self.study.prompt
        output = self.model.model.generate(
            torch.tensor(prompt, dtype=torch.long, device=self.study.device).expand(count, -1),
            max_new_tokens=self.study.length - len(prompt),
            eos_token_id=None,
            generator=torch.Generator(self.study.device).manual_seed(seed),
            return_dict_in_generate=True,
            **arm.options("max_denoising_steps"),
        )
        output.sequences = output.sequences[:, len(prompt) :]
        return output

    def quality(self, rows: list[list[int]]) -> dict:
        """Quality and diversity of samples without start tokens."""
        inputs = {"version": edlm_hf.__version__, "rows": digest_of(rows), "judge": self.study.causal_digest}
        return self.parts("judged", inputs | {"vocabulary": self.settings.vocabulary}, lambda: self.judge(rows))

    def judge(self, rows: list[list[int]]) -> dict:
        texts = self.study.decode(rows)
        options = {"scored": self.study.scored(rows), "batch_size": self.settings.batch_size}
        judged = autoregressive_nll(self.study.causal.to(self.study.device), rows, **options)
        characters = [len(text) for text in texts]
        known = spelling_accuracy(texts, self.study.vocabulary) if self.settings.vocabulary else None
        return {
            "judge_bits": as_dict(ratio_estimate(bits(judged.sequence_nats), characters, PER_CHARACTER)),
            "known_words": as_dict(known),
            "unigram_entropy": as_dict(unigram_entropy(rows)),
        }

    def sample_row(self, arm: Arm) -> dict:
        """Quality and cost of the samples of an arm."""
        drawn = self.samples(arm)
        size = self.settings.batch_size
        per_sample = sorted(seconds / size for seconds in drawn["seconds"][: len(drawn["ids"]) // size or 1])
        return place(arm) | {
            "num_samples": len(drawn["ids"]),
            **self.quality(drawn["ids"]),
            "calls": as_dict(mean_estimate(drawn["calls"], "calls/sample")),
            "seconds_per_sample": per_sample[len(per_sample) // 2],
            "hardware": drawn["hardware"],
        }

    def text_row(self, texts: TextSet) -> dict:
        """The quality of real texts."""
        count = max(self.settings.num_generated, 2)
        rows = [row[len(self.study.prompt) :] for row in texts.rows(count)]
        return {"rule": f"text: {texts.name}", "steps": None, "num_samples": len(rows)} | self.quality(rows)


def run_samplers(settings: SamplerSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything; results.json and results.md in `output` are renewed after every arm.

    Args:
        advance: called with (measurements done, all of them, the one that runs).

    Raises:
        ValueError: as `Study` and the measurements.
    """
    output.mkdir(parents=True, exist_ok=True)
    study = SamplerStudy(settings, output)
    arms = settings.arms()
    sampled = [arm for arm in arms if not settings.sampled or arm.text in settings.sampled]
    sampled = sampled if settings.num_generated else []
    in_all = len(arms) * len(study.texts) + len(sampled)
    counter = iter(range(in_all + 1))

    result = {"environment": environment(study.study.device), "settings": dataclasses.asdict(settings)}
    result |= {"length": study.study.length, "bounds": [], "samples": []}
    for texts in study.texts:
        for arm in arms:
            advance(next(counter), in_all, f"{texts.name}: {arm.label}")
            row = {"data": texts.name} | place(arm) | study.bound(arm, texts)
            result["bounds"].append(row)
            compare(result["bounds"])
            write_results(result, markdown(result), output)
    if sampled:
        result["samples"] = [study.text_row(texts) for texts in study.texts]
    for arm in sampled:
        advance(next(counter), in_all, f"samples: {arm.label}")
        result["samples"].append(study.sample_row(arm))
        write_results(result, markdown(result), output)

    advance(in_all, in_all, "")
    result["plots"] = plot(result, output)
    write_results(result, markdown(result), output)
    return result


def place(arm: Arm) -> dict:
    return {"rule": arm.rule, "steps": arm.steps}


def bits(nats: Sequence[float]) -> list[float]:
    return [value / math.log(2) for value in nats]


def compare(bounds: list[dict]) -> None:
    """Give every bound its differences to those of ancestral sampling on the same texts, as `minus_ancestral`.

    A list of {steps: T of ancestral, None for infinitely many; difference}: bits per character, with the standard
    error over texts of the paired difference, the noise of both bounds included.
    """
    for row in bounds:
        row["minus_ancestral"] = [
            {"steps": other["steps"], "difference": as_dict(difference(row, other))}
            for other in ancestral_bounds(bounds, row["data"])
            if other is not row
        ]


def ancestral_bounds(bounds: list[dict], data: str) -> Iterator[dict]:
    """Those of ancestral sampling on one set of texts, and of its limit for infinitely many steps."""
    for row in bounds:
        if row["data"] == data and row["rule"] in (ANCESTRAL, FIRST_HITTING):
            yield row


def difference(row: dict, other: dict) -> Estimate:
    """Bits per character of one bound less those of another on the same texts."""
    pairs = zip(row["sequence_nats"], other["sequence_nats"], strict=True)
    return ratio_estimate(bits([mine - theirs for mine, theirs in pairs]), row["sequence_characters"], PER_CHARACTER)


# A first look
QUICK = functools.partial(
    SamplerSettings,
    samplers=("ancestral", "first_hitting", "dilated", "spaced distance=8 score=entropy"),
    steps=(4, 8),
    num_texts=8,
    noise_samples=2,
    num_generated=8,
    batch_size=8,
)

__all__ = ["QUICK", "Arm", "SamplerSettings", "SamplerStudy", "arms_of", "run_samplers"]
