"""Random calls of `generate()`, as dictionaries that hypothesis draws: valid ones, and any others."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from fuzz_networks import LONGEST, MASK
from hypothesis import strategies as st
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    SuppressTokensLogitsProcessor,
)

from edlm_hf import EDLMGenerationConfig


def mean_energy(candidates, noisy, log_probs, attention_mask):
    return candidates.double().mean(-1)


def rejecting_energy(candidates, noisy, log_probs, attention_mask):
    """Rejects every candidate but the first."""
    energies = torch.full(log_probs.shape, torch.inf, dtype=torch.float64)
    energies[:, 0] = 0.0
    return energies


def writing_energy(candidates, noisy, log_probs, attention_mask):
    """Uses its arguments as working memory."""
    noisy.zero_()
    candidates.clamp_(max=5)
    return log_probs.zero_() + candidates.double().mean(-1)


def single_precision_energy(candidates, noisy, log_probs, attention_mask):
    return -log_probs.float()


def energy_of_nan(candidates, noisy, log_probs, attention_mask):
    return torch.full(log_probs.shape, torch.nan)


def energy_of_another_shape(candidates, noisy, log_probs, attention_mask):
    return torch.zeros(len(noisy))


def never(input_ids, scores=None, **kwargs):
    return torch.zeros(len(input_ids), dtype=torch.bool)


def narrow(input_ids, scores):
    return scores[:, :1]


def level(input_ids, scores):
    """Allows everything, the mask token too."""
    return torch.zeros_like(scores)


ENERGIES = [None, mean_energy, rejecting_energy, writing_energy, single_precision_energy]
CRITERIA = [None, [never], [MaxLengthCriteria(9)], [EosTokenCriteria(3)]]
PROCESSORS = [None, [], [level], [SuppressTokensLogitsProcessor([1, 2])]]


@dataclass
class Call:
    """One call: the name of the network, the texts of its rows (before padding), and the arguments of `generate()`."""

    model: str
    rows: list[list[int]]
    arguments: dict = field(default_factory=dict)

    @property
    def ragged(self) -> bool:
        return len({len(row) for row in self.rows}) > 1


def padded(rows: list[list[int]], filler: int, left: bool) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Ids and attention mask (B, width) of rows of any length."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filler)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask


tokens = st.one_of(st.integers(0, MASK - 1), st.just(MASK))


@st.composite
def valid_calls(draw, names: tuple[str, ...]) -> Call:
    """Calls that must succeed."""
    call = Call(
        draw(st.sampled_from(names)),
        draw(st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=4)),
    )
    given = call.arguments
    if draw(st.booleans()) or call.ragged:
        ids, mask = padded(call.rows, draw(st.integers(0, MASK - 1)), draw(st.booleans()))
        given |= {"input_ids": ids, "attention_mask": mask}
    elif draw(st.booleans()):
        given["input_ids"] = torch.tensor(call.rows, dtype=torch.long).view(len(call.rows), -1)
    else:
        call.rows = [[] for _ in call.rows]
        given["batch_size"] = len(call.rows)

    # New tokens either fit, or come in blocks
    longest = max(map(len, call.rows))
    given["max_new_tokens"] = draw(st.integers(0, 9))
    if longest + given["max_new_tokens"] > LONGEST or draw(st.booleans()):
        given["block_length"] = draw(st.integers(1, 5))

    options = {
        "max_denoising_steps": st.integers(1, 5),
        "sampler": st.sampled_from(["ancestral", "first_hitting"]),
        "do_sample": st.sampled_from([True, False, False]),
        "num_candidates": st.integers(1, 3),
        "energy_window": st.sampled_from([0, 0.3, 1.0, (0.2, 0.9)]),
        "energy_temperature": st.sampled_from([0.5, 1.0, math.inf]),
        "energy_chunk_size": st.sampled_from([None, 1, 3]),
        "energy": st.sampled_from(ENERGIES),
        "temperature": st.sampled_from([1.0, 0.3]),
        "top_k": st.sampled_from([0, 1, 4]),
        "top_p": st.sampled_from([1.0, 0.6]),
        "eos_token_id": st.sampled_from([None, 4, [5, 6]]),
        "pad_token_id": st.integers(0, MASK - 1),
        "logits_processor": st.sampled_from(PROCESSORS),
        "stopping_criteria": st.sampled_from(CRITERIA),
        "output_history": st.booleans(),
    }
    chosen = draw(st.lists(st.sampled_from(list(options)), unique=True))
    if {"eos_token_id", "stopping_criteria"} & set(chosen):
        chosen.append("pad_token_id")
    return Call(
        call.model,
        call.rows,
        given | {name: draw(options[name]) for name in sorted(set(chosen))},
    )


NUMBERS = [None, True, False, -1, 0, 1, 2, 7, 10**30, 0.0, 0.5, 1.5, -2.0, math.nan, math.inf, "x", "3", [], [1], {}]
NUMBERS += [np.int64(2), np.float32(0.5), np.bool_(True), torch.tensor(3), torch.tensor([1, 2]), object, (0.5,), b"x"]
STRANGE = {
    "input_ids": [
        [[1, 2]], np.array([[1, 2]]), torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]]), torch.tensor([[-1, 2]]),
        torch.tensor([[1, 13]]), torch.tensor([[True]]), torch.tensor([[1, 12]], dtype=torch.int32),
        torch.tensor([[1, 12]], dtype=torch.uint8), torch.zeros(0, 3, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 3, 4, dtype=torch.long), torch.full((1, 13), 3),
        torch.tensor([[1, 2]]).to("meta"), "text", 3, torch.tensor([[1 + 0j]]), torch.tensor([[2**40]]),
    ],
    "attention_mask": [
        torch.zeros(1, 2), torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 9), torch.tensor([[1, 0, 1]]),
        torch.tensor([[0, 0]]), torch.tensor([[2, 3]]), torch.tensor([[0.5, 1.0]]), [[1, 1]], np.ones((1, 2)), "x",
    ],
    "generation_config": [
        GenerationConfig(), GenerationConfig(do_sample=False), GenerationConfig(num_beams=2), EDLMGenerationConfig(),
        EDLMGenerationConfig(max_denoising_steps=2), {"max_denoising_steps": 2}, "x", 3,
    ],
    "logits_processor": [[None], "x", [narrow], [level, narrow], level, 3],
    "stopping_criteria": [[], "x", [None], never, MaxLengthCriteria(3), [MaxLengthCriteria(1)], 3],
    "energy": [energy_of_nan, energy_of_another_shape, "x", 3, torch.nn.Linear],
    "sampler": ["gibbs", None, 3, ["ancestral"], "Ancestral"],
    "energy_scope": ["sequence", "revealed", "x", None, 3],
    "energy_window": [(1, 0), (0.1, 0.2, 0.3), "x", -0.1, 1.1, (math.nan, 1), None, [0.0, 1.0]],
    "streamer": ["x", object(), torch.nn.Linear],
    "generator": [torch.Generator, 3, "x", None],
    "token_type_ids": [torch.zeros(1, 2, dtype=torch.long), "x", 3],
    "num_beams": [1, 2], "max_tokens": [3], "typical_p": [0.5, 1.0], "repetition_penalty": [1.2], "seed": [0],
}  # fmt: skip
COUNTS = ("max_new_tokens", "max_length", "max_denoising_steps", "num_candidates", "block_length", "batch_size")
COUNTS += ("energy_chunk_size", "num_return_sequences", "temperature", "top_k", "top_p", "energy_temperature")
COUNTS += ("eos_token_id", "pad_token_id", "do_sample", "output_history", "return_dict_in_generate")


@st.composite
def wild_calls(draw, names: tuple[str, ...]) -> Call:
    """A valid call with one to three arguments replaced by anything."""
    call = draw(valid_calls(names))
    for name in draw(st.lists(st.sampled_from([*COUNTS, *STRANGE]), min_size=1, max_size=3, unique=True)):
        call.arguments[name] = draw(st.sampled_from(STRANGE.get(name, []) + (NUMBERS if name in COUNTS else [])))
    return call
