"""`edlm benchmark quality`: MDLM, EDLM with every energy there is, and the AR model on the same texts and equal work.

Each sampler ("arm") runs at every number of steps T: a bound of its likelihood on every set of texts, and samples with
their generative perplexity, entropy and cost. Work is network FLOPs (calls times those of a forward pass) and seconds.

Every finished part is a file of its own under `parts`, found again by all that it depends on (weights, texts,
settings, not the machine), so that the same command goes on after an interruption, and one with more values of T does
only what is new.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

import edlm_hf
from edlm_hf.benchmarks.quality_report import markdown, plot
from edlm_hf.benchmarks.report import DTYPES, Parts, environment, hardware, write_results
from edlm_hf.data import PROTOCOLS, load_corpus, to_blocks
from edlm_hf.evaluation import (
    Estimate,
    autoregressive_nll,
    discrete_nelbo,
    distinct_n,
    generative_perplexity,
    nelbo,
    sampler_bound,
    spelling_accuracy,
    unigram_entropy,
    vocabulary_of,
    word_entropy,
)
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.evaluation.judges import load_judge
from edlm_hf.evaluation.log_partition import finite_sd
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.loading import load_causal, load_masked, load_tokenizer
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.tokenization import is_text8, normalize_text8

MDLM, AR, NATS = "MDLM", "AR", "nats/token"


@dataclass(frozen=True)
class QualitySettings:
    """What is compared, on what, and how much of it.

    Args:
        model: folder or Hub repository of the denoiser and its tokenizer, or of an EDLM composite, whose own energy
            then takes part.
        data: the sets of texts, each a protocol (`edlm_hf.data.PROTOCOLS`), a Hub dataset or files, or `name=source`;
            a set named after a protocol is cleaned like it (`wikitext2=test.parquet`). Without a protocol's own
            evaluation split it is the split "test".
        autoregressive: the AR model: an arm, the energy of EDLM-AR and EDLM-coAR, the judge unless `judge` is given.
        nce: EDLM composites with an NCE energy of the same denoiser, one per scope.
        judge: causal language model for the generative perplexity.
        vocabulary: corpus whose training split has the words that are spelled right.
        steps: values of T. num_candidates: k. window: w. inner_copies: values of m for the sampler bound.
        num_texts: blocks of each set that are scored. noise_samples: per text, even or 1.
        num_generated: samples for each of `seeds`.
        dtype: float32 or bfloat16, of all networks but the judge.

    Raises:
        ValueError: a value is out of range, missing or given twice.
    """

    model: str
    data: tuple[str, ...]
    autoregressive: str | None = None
    nce: tuple[str, ...] = ()
    judge: str | None = None
    vocabulary: str | None = None
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    num_candidates: int = 8
    window: float = 1.0
    inner_copies: tuple[int, ...] = (1, 16, 64)
    num_texts: int = 128
    noise_samples: int = 8
    num_generated: int = 256
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self):
        for name in ("data", "steps", "inner_copies", "seeds"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty. Give at least one value.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}, but a value may stand there only once.")
        for name in ("steps", "inner_copies", "num_texts", "noise_samples", "batch_size"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name} is {value}, but it must be positive.")
        if self.noise_samples > 1 and self.noise_samples % 2:
            raise ValueError(f"noise_samples is {self.noise_samples}, but it must be 1 or even (they come in pairs).")
        if self.num_generated < 2:
            raise ValueError(f"num_generated is {self.num_generated}, but a standard error needs at least 2 samples.")
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates is {self.num_candidates}, but an energy weighs at least 2.")
        if not 0 < self.window <= 1:
            raise ValueError(f"window is {self.window}, but it must lie in (0, 1]; w = 0 is MDLM, an arm of its own.")
        names = [name for name, _ in map(named_source, self.data)]
        if len(set(names)) < len(names):
            raise ValueError(f"Two sets of texts have the same name: {', '.join(names)}. Write name=source.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but it must be one of {', '.join(DTYPES)}.")
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device is {self.device!r}, but it must be one like cpu, cuda or cuda:1.") from None

    @property
    def num_samples(self) -> int:
        """Samples per arm and T."""
        return self.num_generated * len(self.seeds)


QUICK = {"steps": (4, 16), "num_candidates": 4, "inner_copies": (1, 4), "num_texts": 4, "noise_samples": 2}
QUICK |= {"num_generated": 8, "batch_size": 8}


def named_source(text: str) -> tuple[str, str]:
    """`name=source` -> (name, source); the name of a source alone is that of its file or dataset."""
    name, given, source = text.partition("=")
    return (name, source) if given else (text if text in PROTOCOLS else Path(text).stem, text)


# ----------------------------------------------------------------------------------------------------------- the texts


class TextSet(NamedTuple):
    """Blocks `input_ids` of equal length; the start token in front where the models have one."""

    name: str
    blocks: Dataset

    def rows(self, count: int) -> list[list[int]]:
        """`count` of the blocks, or all of them, at even distances."""
        count = min(count, len(self.blocks))
        return self.blocks.select([i * len(self.blocks) // count for i in range(count)])["input_ids"][:]


def cleaned(functions: tuple[Callable[[str], str], ...], text: str) -> str:
    for function in functions:
        text = function(text)
    return text


def load_texts(source: str, tokenizer: PreTrainedTokenizerBase, split: str | None = None):
    """A corpus, in the alphabet of the tokenizer; the split is that of the protocol, or "test", unless given."""
    name, source = named_source(source)
    functions = (PROTOCOLS[name].clean,) if name in PROTOCOLS and source != name and PROTOCOLS[name].clean else ()
    functions += (normalize_text8,) if is_text8(tokenizer) else ()
    split = split or (PROTOCOLS[source].evaluation if source in PROTOCOLS else "test")
    return load_corpus(source, split, normalize=functools.partial(cleaned, functions) if functions else None)


# ------------------------------------------------------------------------------------------------------------ the arms


@dataclass(frozen=True)
class Arm:
    """A sampler.

    Args:
        model: what `generate()` is called of. causal: whether it writes from left to right.
        flops: of one call for one sample (the whole sample where causal). energy_flops: of one candidate.
        identity: digests of the weights and what else decides its results.
    """

    name: str
    model: nn.Module
    flops: float
    energy_flops: float
    identity: tuple[str, ...]

    @property
    def causal(self) -> bool:
        return self.name == AR


def forward_flops(config, length: int, *, causal: bool = False, energy: bool = False) -> float:
    """Floating-point operations of one forward pass over `length` tokens (spec: 292 GFLOP for L = 1024, MDLM on OWT).

    2 for each multiply-add of a transformer with feed-forward layers of four times its width: the linear layers, the
    pairs of tokens that attend to each other, and the head at every position (an `energy` network has three products
    of its width with itself instead). `generate()` leaves out many of these; the count does not.
    """
    width, blocks = config.hidden_size, config.num_hidden_layers
    head = 3 * width * width if energy else width * config.vocab_size
    pairs = length * (length + 1) / 2 if causal else length * length
    return 2 * length * (12 * blocks * width * width + head) + 4 * blocks * width * pairs


def digest(model: nn.Module) -> str:
    """Of the weights and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def nce_name(model: EDLMForMaskedDiffusion) -> str:
    return "EDLM-NCE" if model.config.energy_scope == "sequence" else f"EDLM-NCE ({model.config.energy_scope})"


class Study:
    """The networks, the texts and the measurements on them; a part that is finished is not repeated.

    Raises:
        ValueError: nothing to judge with, a composite without an NCE energy or of another denoiser, two NCE energies of
            one scope, a model that does not say how long its texts are, an AR model without start token.
    """

    def __init__(self, settings: QualitySettings, output: Path):
        self.settings, self.parts, self.device = settings, Parts(output / "parts"), torch.device(settings.device)
        self.tokenizer = load_tokenizer(settings.model)
        precision = {"dtype": DTYPES[settings.dtype]}
        network = load_masked(settings.model, self.tokenizer, **precision)
        denoiser, own_energy = getattr(network, "denoiser", network), getattr(network.config, "energy_type", "none")
        self.causal = network.energy_model if own_energy in ("ar", "coar") else None
        if settings.autoregressive is not None:
            causal = load_causal(settings.autoregressive, **precision)
            self.causal = getattr(causal, "energy_model", causal)
        if self.causal is None and settings.judge is None:
            raise ValueError("Nothing judges the samples: give judge, or autoregressive (an AR model, also an arm).")
        composites = [load_masked(name, self.tokenizer, **precision) for name in settings.nce]
        composites += [network] if own_energy == "nce" else []
        self.denoiser = EDLMForMaskedDiffusion.from_components(denoiser, tokenizer=self.tokenizer)
        self.length = self.denoiser.config.max_position_embeddings
        if self.length is None:
            raise ValueError(f"{settings.model} does not say how long its texts are (max_position_embeddings).")
        start = self.denoiser.config.bos_token_id
        self.prompt = [] if start is None else [start]
        self.wraps = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id) != (None, None)
        self.arms = self.build_arms(denoiser, composites)
        self.texts = [self.cut(source) for source in settings.data]

    def build_arms(self, denoiser: nn.Module, composites: list[EDLMForMaskedDiffusion]) -> list[Arm]:
        config, length, of_denoiser = self.denoiser.config, self.length, digest(denoiser)
        flops = forward_flops(config, length)
        identity = of_denoiser, json.dumps([config.noise_schedule, config.noise_schedule_params])
        arms = [Arm(MDLM, self.denoiser.to(self.device), flops, 0.0, identity)]
        for model in composites:
            name = nce_name(model)
            if model.config.energy_type != "nce":
                raise ValueError(f"A composite of `nce` has energy_type {model.config.energy_type!r}, not 'nce'.")
            if digest(model.denoiser) != of_denoiser:
                raise ValueError(f"The {name} composite has another denoiser than `model`: give that as `model` too.")
            if name in [arm.name for arm in arms]:
                raise ValueError(f"Two composites of `nce` have the scope {model.config.energy_scope}: give one.")
            of_energy = forward_flops(model.config.energy_config or denoiser.config, length, energy=True)
            energy = model.config.energy_scope, digest(model.energy_model)
            arms.append(Arm(name, model.to(self.device).eval(), flops, of_energy, (*identity, *energy)))
        if self.causal is not None:
            of_causal = forward_flops(self.causal.config, length, causal=True)
            for name, energy_type in (("EDLM-AR", "ar"), ("EDLM-coAR", "coar")):
                model = EDLMForMaskedDiffusion.from_components(
                    denoiser, self.causal, energy_type=energy_type, tokenizer=self.tokenizer
                ).to(self.device)
                arms.append(Arm(name, model, flops, of_causal, (*identity, energy_type, self.causal_digest)))
            arms.append(Arm(AR, self.causal.eval(), of_causal, 0.0, (self.causal_digest,)))
            self.causal_options()  # refuses a model without start token before any work is done
        return arms

    def cut(self, source: str) -> TextSet:
        style = "wrap" if self.wraps else "crop"
        start_token = bool(self.prompt) and not self.wraps
        corpus = load_texts(source, self.tokenizer)
        blocks = to_blocks(corpus, self.tokenizer, self.length, style=style, start_token=start_token)
        return TextSet(named_source(source)[0], blocks)

    def decode(self, rows: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    # --------------------------------------------------------------------------------------------------- measurements

    def points(self) -> Iterator[tuple[Arm, int | None]]:
        """Every arm and T; None for the AR model, and for MDLM in continuous time (a bound only)."""
        for arm in self.arms:
            if not arm.causal:
                yield from ((arm, steps) for steps in self.settings.steps)
            if arm.name in (MDLM, AR):
                yield arm, None

    def copies(self, arm: Arm) -> tuple[int | None, ...]:
        """Values of m; None for the arms whose bound has none."""
        return (None,) if arm.name in (MDLM, AR) else self.settings.inner_copies

    def sampling(self, arm: Arm, steps: int | None) -> dict:
        """What the samples and bounds of an arm depend on."""
        weighs = arm.name not in (MDLM, AR)
        energy = {"num_candidates": self.settings.num_candidates, "window": self.settings.window} if weighs else {}
        identity = {"version": edlm_hf.__version__, "arm": arm.name, "weights": arm.identity, "prompt": self.prompt}
        return identity | {"steps": steps, "length": self.length} | energy

    def samples(self, arm: Arm, steps: int | None, seed: int) -> dict:
        """`num_generated` samples: ids, calls, seconds, and sums over samples of what the energies did at each step."""
        inputs = self.sampling(arm, steps) | {"seed": seed, "count": self.settings.num_generated}
        inputs |= {"batch_size": self.settings.batch_size, "wraps": self.wraps, "device": self.device.type}
        return self.parts("samples", inputs, lambda: self.generate(arm, steps, seed))

    def generate(self, arm: Arm, steps: int | None, seed: int) -> dict:
        count, size = self.settings.num_generated, self.settings.batch_size
        generator = torch.Generator(self.device).manual_seed(seed)
        outputs = []
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.draw(arm, steps and min(steps, 2), min(count, size), torch.Generator(self.device))  # warm-up
            torch.manual_seed(seed)
            began = self.now()
            for done in range(0, count, size):
                outputs.append(self.draw(arm, steps, min(size, count - done), generator))
            seconds = self.now() - began
        return {
            "ids": [row for output in outputs for row in output.sequences.tolist()],
            "denoiser_calls": torch.cat([output.num_denoiser_calls for output in outputs]).tolist(),
            "energy_calls": torch.cat([output.num_energy_calls for output in outputs]).tolist(),
            "seconds": seconds,
            "hardware": hardware(self.device),
            "steps": summed([step_sums(output) for output in outputs]),
        }

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def draw(self, arm: Arm, steps: int | None, count: int, generator: torch.Generator) -> EDLMGenerationOutput:
        """`count` samples without the start token in front of them."""
        if arm.causal:
            options = self.causal_options()
            start = torch.full((count, 1), options.bos_token_id, device=self.device)
            rows = arm.model.generate(start, attention_mask=torch.ones_like(start), generation_config=options)
            rows = rows[:, rows.shape[1] - self.length + len(self.prompt) :]
            calls = torch.full((count,), options.max_new_tokens)
            return EDLMGenerationOutput(rows, num_denoiser_calls=calls, num_energy_calls=torch.zeros_like(calls))
        prompt = torch.tensor(self.prompt, dtype=torch.long, device=self.device).expand(count, -1)
        output = arm.model.generate(
            prompt,
            max_new_tokens=self.length - len(self.prompt),
            max_denoising_steps=steps,
            num_candidates=self.settings.num_candidates,
            energy_window=self.settings.window,
            eos_token_id=None,
            generator=generator,
            return_dict_in_generate=True,
        )
        output.sequences = output.sequences[:, len(self.prompt) :]
        return output

    def causal_options(self) -> GenerationConfig:
        """Plain sampling of complete rows; what the denoiser cannot emit is forbidden, and so is a second start.

        Without a start token of its own the AR model begins with that of the tokenizer, as wrapped blocks do.
        """
        config, start = self.denoiser.config, self.causal.config.bos_token_id
        if start is None:
            start = self.tokenizer.bos_token_id if self.wraps else None
        if start is None:
            raise ValueError("The AR model has no start token to sample from: set config.bos_token_id.")
        forbidden = {config.mask_token_id, *range(config.vocab_size, self.causal.config.vocab_size)}
        forbidden |= {start} - {self.tokenizer.eos_token_id}
        begins = bool(self.prompt) or self.wraps  # whether the start token is one of the L tokens
        return GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            bos_token_id=start,
            pad_token_id=start,
            eos_token_id=[],  # None would be that of the model, which ends rows early
            max_new_tokens=self.length - begins,
            suppress_tokens=sorted(x for x in forbidden if x < self.causal.config.vocab_size),
        )

    def quality(self, rows: list[list[int]]) -> dict:
        """Quality and diversity of samples without start tokens; None where there are too few words."""
        inputs = {"version": edlm_hf.__version__, "rows": digest_of(rows)}
        inputs |= {"judge": self.settings.judge or self.causal_digest, "vocabulary": self.settings.vocabulary}
        return self.parts("quality", inputs, lambda: self.judge_rows(rows))

    def judge_rows(self, rows: list[list[int]]) -> dict:
        texts = self.decode(rows)
        words = max(len(text.split()) for text in texts)
        known = spelling_accuracy(texts, self.vocabulary) if words and self.settings.vocabulary else None
        return {
            "generative_perplexity": as_dict(self.perplexity(rows)),
            "unigram_entropy": as_dict(unigram_entropy(rows)),
            "word_entropy": as_dict(word_entropy(texts)),
            "distinct_2": as_dict(distinct_n(texts, 2) if words > 1 else None),
            "known_words": as_dict(known),
        }

    def perplexity(self, rows: list[list[int]]) -> Estimate:
        """Under the judge, or under the AR model token by token; standard errors are those over samples."""
        if self.settings.judge is None:
            options = {"scored": self.scored(rows), "batch_size": self.settings.batch_size}
            found = autoregressive_nll(self.causal.to(self.device), rows, **options)
            value = found.perplexity.value
            return Estimate(value, value * found.text_standard_error, len(rows), "perplexity")
        judge, tokenizer = self.judge
        own = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]  # the judge reads texts with a start token
        texts = self.decode(rows, special=self.wraps and tokenizer.eos_token == self.tokenizer.eos_token)
        context = getattr(judge.config.get_text_config(), "max_position_embeddings", None) or 2
        options = {"batch_size": self.settings.batch_size, "stride": max(1, context // 2), "add_start_token": own}
        return generative_perplexity(texts, judge, tokenizer, **options)

    def scored(self, rows: list[list[int]]) -> list[torch.Tensor]:
        """The tokens that count for the denoiser, so that all arms divide by the same number."""
        return read_texts(self.denoiser.config, rows).scored

    @functools.cached_property
    def judge(self):
        return load_judge(self.settings.judge, None, self.device)

    @functools.cached_property
    def causal_digest(self) -> str:
        return digest(self.causal)

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        return vocabulary_of(load_texts(self.settings.vocabulary, self.tokenizer, split="train")["text"])

    def bound(self, arm: Arm, steps: int | None, copies: int | None, texts: TextSet) -> dict:
        """The bound of an arm on a set of texts: nats per token and bits per character."""
        rows = texts.rows(self.settings.num_texts)
        inputs = self.sampling(arm, steps) | {"inner_copies": copies, "rows": digest_of(rows)}
        inputs |= {"noise_samples": self.settings.noise_samples, "seed": self.settings.seeds[0]}
        return self.parts("bound", inputs, lambda: self.score(arm, steps, copies, rows))

    def score(self, arm: Arm, steps: int | None, copies: int | None, rows: list[list[int]]) -> dict:
        noise = {"num_samples": self.settings.noise_samples, "seed": self.settings.seeds[0]}
        sampler = {"num_candidates": self.settings.num_candidates, "energy_window": self.settings.window}
        if arm.causal:
            measure, options = autoregressive_nll, {"scored": self.scored(rows)}
        elif steps is None:
            measure, options = nelbo, noise
        elif copies is None:
            measure, options = discrete_nelbo, noise | {"num_steps": steps}
        else:
            measure, options = sampler_bound, noise | sampler | {"num_steps": steps, "inner_copies": copies}
        found = measure(arm.model.to(self.device), rows, batch_size=self.settings.batch_size, **options)
        per_character = found.bits_per("character", sum(map(len, self.decode(rows))))
        return {
            "bound": measure.__name__,
            "nats_per_token": as_dict(found),
            "bits_per_character": as_dict(per_character),
            "sequence_nats": found.sequence_nats,
            "sequence_tokens": found.sequence_tokens,
        }

    # -------------------------------------------------------------------------------------------------------- results

    def row(self, arm: Arm, steps: int | None, tick: Callable[[], None]) -> dict:
        """Quality and cost of the samples of an arm at T, over all seeds."""
        drawn = []
        for seed in self.settings.seeds:
            drawn.append(self.samples(arm, steps, seed))
            tick()
        rows = [row for part in drawn for row in part["ids"]]
        calls = {
            name: mean_estimate([x for part in drawn for x in part[name]], "calls/sample")
            for name in ("denoiser_calls", "energy_calls")
        }
        passes = 1 if arm.causal else calls["denoiser_calls"].value
        evaluations = calls["energy_calls"].value * self.settings.num_candidates
        result = {"samples": arm.name, "steps": steps, "num_samples": len(rows)} | self.quality(rows)
        tick()
        return result | {
            **{name: as_dict(estimate) for name, estimate in calls.items()},
            "gigaflops_per_sample": (passes * arm.flops + evaluations * arm.energy_flops) / 1e9,
            "seconds_per_sample": sum(part["seconds"] for part in drawn) / len(rows),
            "hardware": sorted({part["hardware"] for part in drawn}),
            "profile": profile(summed([part["steps"] for part in drawn])),
        }

    def text_row(self, texts: TextSet) -> dict:
        """The same of a set of texts."""
        rows = [row[len(self.prompt) :] for row in texts.rows(self.settings.num_samples)]
        return {"samples": f"data: {texts.name}", "steps": None, "num_samples": len(rows)} | self.quality(rows)


def run_study(settings: QualitySettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything; results.json and results.md in `output` are renewed after every arm and T.

    Args:
        advance: told (parts done, parts in all, what is running).

    Raises:
        ValueError: what `Study`, the corpora and the measurements refuse.
    """
    output.mkdir(parents=True, exist_ok=True)
    study = Study(settings, output)
    points, sets = list(study.points()), study.texts
    sampled = sum(arm.causal or steps is not None for arm, steps in points)
    in_all = sampled * (len(settings.seeds) + 1) + len(sets) * (1 + sum(len(study.copies(arm)) for arm, _ in points))
    done, label = 0, "data"

    def tick():
        nonlocal done
        done += 1
        advance(done, in_all, label)

    advance(done, in_all, label)
    result = {"environment": environment(study.device), "settings": dataclasses.asdict(settings)}
    result |= {"length": study.length, "samples": [], "bounds": []}
    for texts in sets:
        result["samples"].append(study.text_row(texts))
        tick()
    for arm, steps in points:
        label = arm.name if steps is None else f"{arm.name} T={steps}"
        advance(done, in_all, label)
        if arm.causal or steps is not None:
            result["samples"].append(study.row(arm, steps, tick))
        for texts, copies in itertools.product(sets, study.copies(arm)):
            point = {"arm": arm.name, "steps": steps, "inner_copies": copies, "data": texts.name}
            result["bounds"].append(point | study.bound(arm, steps, copies, texts))
            result["bounds"][-1]["minus_mdlm"] = minus_mdlm(result["bounds"])
            tick()
        write_results(result, markdown(result), output)
    result["plots"] = plot(result, output)
    write_results(result, markdown(result), output)
    return result


# ------------------------------------------------------------------------------------------------------------- numbers


def step_sums(output: EDLMGenerationOutput) -> dict[str, list[float]] | None:
    """Of each of T steps: how many samples were weighed, and sums of effective sample size, its square, and sd(E)."""
    if output.energies is None:
        return None
    sizes = output.effective_sample_size.double().cpu()  # (T, B), NaN where a row had nothing to reveal
    weighed = sizes.isfinite()
    sizes = sizes.where(weighed, 0.0)
    energies = output.energies.double().cpu()
    deviations = finite_sd(energies.flatten(0, 1)).view(sizes.shape).where(weighed, 0.0)
    sums = {"count": weighed, "size": sizes, "size_squares": sizes.square(), "energy_sd": deviations}
    return {name: values.sum(-1).tolist() for name, values in sums.items()}


def summed(parts: list[dict[str, list[float]] | None]) -> dict[str, list[float]] | None:
    """The sums of several batches; a batch without any is left out."""
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    return {name: [math.fsum(values) for values in zip(*(x[name] for x in parts), strict=True)] for name in parts[0]}


def profile(sums: dict[str, list[float]] | None) -> list[dict]:
    """Effective sample size and sd(E) at the time t where each step starts, of the steps that weighed candidates."""
    rows, steps = [], 0 if sums is None else len(sums["count"])
    for i in range(steps):
        count, size, squares, deviation = (sums[name][i] for name in ("count", "size", "size_squares", "energy_sd"))
        if count:
            variance = max(0.0, squares / count - (size / count) ** 2) / (count - 1) if count > 1 else None
            row = {"t": 1 - i / steps, "num_samples": int(count), "effective_sample_size": size / count}
            row["standard_error"] = None if variance is None else math.sqrt(variance)
            rows.append(row | {"energy_sd": deviation / count})
    return rows


def minus_mdlm(bounds: list[dict]) -> dict | None:
    """Nats per token of the newest bound less those of MDLM at the same T, on the same texts and with the same noise.

    Its standard error, over texts, is that of the paired difference. None for what has no such counterpart.
    """
    last = bounds[-1]
    for row in bounds:
        if row["arm"] == MDLM != last["arm"] and (row["data"], row["steps"]) == (last["data"], last["steps"]):
            if last["steps"] is not None:
                pairs = zip(last["sequence_nats"], row["sequence_nats"], strict=True)
                return as_dict(ratio_estimate([ours - theirs for ours, theirs in pairs], row["sequence_tokens"], NATS))
    return None


def as_dict(estimate: Estimate | None) -> dict | None:
    """Value, standard error, number of samples and unit."""
    if estimate is None:
        return None
    return {field.name: getattr(estimate, field.name) for field in dataclasses.fields(Estimate)}


def digest_of(rows: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


__all__ = ["QUICK", "QualitySettings", "Study", "forward_flops", "run_study"]
