"""`edlm benchmark infilling`: how many hidden words of a paragraph each way to fill masks finds again.

All ways fill the same masks of the same model, so that their differences are paired paragraph by
paragraph. The same command goes on after an interruption, see `parts.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

import edlm_hf
from edlm_hf.benchmarks.infilling_report import markdown
from edlm_hf.benchmarks.infilling_settings import Filling, InfillingSettings, fillings_of
from edlm_hf.benchmarks.paragraphs import Paragraph, hide_words
from edlm_hf.benchmarks.parts import digest_of_rows
from edlm_hf.benchmarks.report import Progress, as_dict, environment, hardware, write_results
from edlm_hf.benchmarks.study import SEEDS_OF_BATCHES, Study
from edlm_hf.benchmarks.text_sets import load_paragraphs, named_source
from edlm_hf.benchmarks.timing import seconds_now
from edlm_hf.evaluation.estimate import mean_estimate


class InfillingStudy(Study):
    """The measurements of every way to fill masks.

    Attributes:
        fillings: the ways that are compared.

    Raises:
        ValueError: as `Study`, or there are candidates to weigh but no energy.
    """

    settings: InfillingSettings

    def __init__(self, settings: InfillingSettings, output: Path):
        super().__init__(settings, output)

        # Energies are loaded only where candidates are weighed
        names = tuple(self.energies) if settings.num_candidates > 1 else ()
        self.fillings = fillings_of(settings, names)

    def paragraphs(self, source: str) -> list[Paragraph]:
        """The paragraphs of a set of texts with their hidden words, the start token in front of each."""
        chosen = hide_words(
            load_paragraphs(source, self.tokenizer, self.settings.text_column),
            self.tokenizer,
            count=self.settings.num_paragraphs,
            num_words=self.settings.num_words,
            longest=self.length - len(self.prompt),
            seed=self.settings.seeds[0],
        )

        # A start token in front moves the ranges of hidden tokens by one
        moved = len(self.prompt)
        paragraphs = []
        for paragraph in chosen:
            hidden = [(begin + moved, end + moved) for begin, end in paragraph.hidden]
            paragraphs.append(Paragraph(self.prompt + paragraph.ids, hidden))
        return paragraphs

    def row(self, filling: Filling, paragraphs: list[Paragraph]) -> dict:
        """Recovered words, calls and seconds of a way to fill masks, means over seeds."""
        # Without random numbers all seeds are the same
        seeds = self.settings.seeds[:1] if filling.greedy else self.settings.seeds
        fills = [self.filled(filling, paragraphs, seed) for seed in seeds]

        # The paragraphs are the independent samples: (n,) shares, means over seeds
        num_words = self.settings.num_words
        shares = means(fill["recovered"] for fill in fills)
        shares = [recovered / num_words for recovered in shares]

        # Cost per paragraph. Seconds are of all paragraphs together, as they are filled in batches
        calls = means(fill["denoiser_calls"] for fill in fills)
        energy_calls = means(fill["energy_calls"] for fill in fills)
        seconds = sum(fill["seconds"] for fill in fills) / len(fills)
        return {
            "sampler": filling.sampler.rule,
            "steps": filling.sampler.steps,
            "tokens": filling.tokens,
            "share_recovered": as_dict(mean_estimate(shares, "of words")),
            "shares": shares,
            "denoiser_calls": as_dict(mean_estimate(calls, "calls/paragraph")),
            "energy_calls": as_dict(mean_estimate(energy_calls, "calls/paragraph")),
            "seconds_per_paragraph": seconds / len(paragraphs),
            "hardware": fills[0]["hardware"],
        }

    def filled(self, filling: Filling, paragraphs: list[Paragraph], seed: int) -> dict:
        """The paragraphs filled with one seed."""
        _, energy_identity = self.weighed_by(filling.energy)

        # Everything that decides the tokens is in the name of the part
        inputs = {
            "version": edlm_hf.__version__,
            "weights": self.identity,
            "energy_weights": energy_identity,
            **filling.identity(),
            "rows": digest_of_rows([paragraph.ids for paragraph in paragraphs]),
            "hidden": digest_of_rows([paragraph.hidden for paragraph in paragraphs]),
            "seed": seed,
            "batch_size": self.settings.batch_size,
            "dtype": self.settings.dtype,
            "device": self.device.type,
        }
        return self.parts("filled", inputs, lambda: self.fill(filling, paragraphs, seed))

    def fill(self, filling: Filling, paragraphs: list[Paragraph], seed: int) -> dict:
        """Fill the paragraphs, and measure the seconds after a warm-up of one paragraph."""
        model, _ = self.weighed_by(filling.energy)
        options = {**filling.options(), "batch_size": self.settings.batch_size}

        # The first call of a network takes longer
        fill_paragraphs(model, paragraphs[:1], self.tokenizer, seed=seed, **options)

        began = seconds_now(self.device)
        result = fill_paragraphs(model, paragraphs, self.tokenizer, seed=seed, **options)
        seconds = seconds_now(self.device) - began
        return {**result, "seconds": seconds, "hardware": hardware(self.device)}


def fill_paragraphs(
    model: nn.Module,
    paragraphs: Sequence[Paragraph],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    batch_size: int,
    **options,
) -> dict[str, list[int]]:
    """Fill the hidden words of n paragraphs, and count the ones that have their own text again.

    Args:
        model: has `generate()`.
        options: of `generate()`.

    Returns:
        for every paragraph the number of words that were `recovered`, and its `denoiser_calls` and
        `energy_calls`.
    """
    recovered = []
    denoiser_calls = []
    energy_calls = []
    for number, first in enumerate(range(0, len(paragraphs), batch_size)):
        batch = paragraphs[first : first + batch_size]
        input_ids, attention_mask = padded(batch, model.config.mask_token_id)

        # Every batch has a seed of its own, so that the number of batches does not change the others
        generator = torch.Generator(model.device).manual_seed(seed * SEEDS_OF_BATCHES + number)
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            max_new_tokens=0,
            eos_token_id=None,
            generator=generator,
            return_dict_in_generate=True,
            **options,
        )
        denoiser_calls += output.num_denoiser_calls.tolist()
        energy_calls += output.num_energy_calls.tolist()

        # Words are compared as text: other tokens that spell the same word count too
        for paragraph, ids in zip(batch, output.sequences.tolist(), strict=True):
            hidden = paragraph.words(paragraph.ids, tokenizer)
            found = paragraph.words(ids, tokenizer)
            pairs = zip(hidden, found, strict=True)
            recovered.append(sum(word == other for word, other in pairs))
    return {"recovered": recovered, "denoiser_calls": denoiser_calls, "energy_calls": energy_calls}


def padded(paragraphs: Sequence[Paragraph], mask_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The paragraphs with masks for hidden words, and which tokens are not padding: (B, L) each."""
    rows = [torch.tensor(paragraph.masked(mask_token_id)) for paragraph in paragraphs]
    real = [torch.ones_like(row) for row in rows]

    # Any token but the mask can be the padding, which nothing looks at
    padding = 1 if mask_token_id == 0 else 0
    input_ids = pad_sequence(rows, batch_first=True, padding_value=padding)
    attention_mask = pad_sequence(real, batch_first=True)
    return input_ids, attention_mask


def means(lists) -> list[float]:
    """The means of lists of equal length, number by number.

    >>> means([[1, 2], [3, 4]])
    [2.0, 3.0]
    """
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]


def run_infilling(settings: InfillingSettings, output: Path, advance: Callable[[int, int, str], None]) -> dict:
    """Measure everything. results.json and results.md in `output` are renewed after every row.

    Args:
        advance: called with (measurements finished, all of them, what runs now).

    Raises:
        ValueError: as `InfillingStudy` and `hide_words`.
    """
    output.mkdir(parents=True, exist_ok=True)
    study = InfillingStudy(settings, output)
    progress = Progress(advance, len(study.fillings) * len(settings.data))
    result = {
        "environment": environment(study.device),
        "settings": dataclasses.asdict(settings),
        "length": study.length,
        "texts": [],
        "rows": [],
    }

    for source in settings.data:
        # 1. The paragraphs, and which of their words are hidden: the same for all fillings
        name, _ = named_source(source)
        paragraphs = study.paragraphs(source)
        result["texts"].append({"data": name, **facts_of(paragraphs)})

        # 2. A row for each filling, with its paired difference to the first one
        first = None
        for filling in study.fillings:
            progress.start(f"{name}: {filling.label}")
            row = {"data": name, **study.row(filling, paragraphs)}
            first = first or row
            row["difference"] = None if row is first else as_dict(difference(row, first))

            result["rows"].append(row)
            write_results(result, markdown(result), output)
            progress.finish_one()
    return result


def facts_of(paragraphs: Sequence[Paragraph]) -> dict:
    """The number of paragraphs, hidden words, hidden tokens, and tokens in all."""
    ranges = [word for paragraph in paragraphs for word in paragraph.hidden]
    return {
        "num_paragraphs": len(paragraphs),
        "num_words": len(ranges),
        "num_masks": sum(end - begin for begin, end in ranges),
        "num_tokens": sum(len(paragraph.ids) for paragraph in paragraphs),
    }


def difference(row: dict, first: dict):
    """The share of a row less the one of the first row, paired paragraph by paragraph."""
    pairs = zip(row["shares"], first["shares"], strict=True)
    differences = [share - other for share, other in pairs]
    return mean_estimate(differences, "of words")


__all__ = ["InfillingSettings", "InfillingStudy", "fill_paragraphs", "run_infilling"]
