"""Random calls of `generate()`: what may be given, and what must hold of every output.

A call is a dictionary of arguments that hypothesis draws. `check_output` holds for every call that is not refused, and
`check_refusal` for the others.
"""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from foreign_models import DreamConfig, DreamModel, LLaDAConfig, LLaDAModelLM
from hypothesis import strategies as st
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EosTokenCriteria,
    FNetConfig,
    FNetForMaskedLM,
    GenerationConfig,
    MaxLengthCriteria,
    RobertaConfig,
    RobertaForMaskedLM,
    SuppressTokensLogitsProcessor,
)

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, EDLMGenerationConfig
from edlm_hf.modeling.custom_generate import generate as custom_generate

MASK, VOCABULARY, LONGEST = 12, 13, 12

# ------------------------------------------------------------------------------------------------------------ networks


def bert(config_class=BertConfig, model_class=BertForMaskedLM, **changes) -> torch.nn.Module:
    """A small masked language model of transformers, which reads 12 tokens."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    sizes |= {"max_position_embeddings": LONGEST, "num_attention_heads": 2, "pad_token_id": 0}
    return randomised(model_class(config_class(**(sizes | changes))))


def composite(denoiser: Callable, energy: Callable | None = None, **choices) -> EDLMForMaskedDiffusion:
    parts = [denoiser()] + ([energy()] if energy else [])
    return randomised(
        EDLMForMaskedDiffusion.from_components(*parts, mask_token_id=MASK, **choices),
        seed=3,
    )


def causal():
    return tiny_causal(bos_token_id=10, model_length=LONGEST + 1)


def roberta():
    return bert(RobertaConfig, RobertaForMaskedLM, max_position_embeddings=LONGEST + 2, pad_token_id=1)


NETWORKS = {
    "MDLM": tiny_denoiser,
    "MDLM with time": lambda: tiny_denoiser(time_conditioning=True),
    "NCE": lambda: composite(tiny_denoiser, lambda: randomised(EDLMEnergyModel(tiny_config()), seed=2)),
    "NCE, shared": lambda: composite(
        tiny_denoiser, energy_type="nce", energy_weights="shared", energy_adapter_rank=2, energy_scope="revealed"
    ),
    "AR": lambda: composite(tiny_denoiser, causal),
    "coAR": lambda: composite(tiny_denoiser, lambda: tiny_gpt2(n_positions=LONGEST + 1), energy_type="coar"),
    "BERT": lambda: composite(bert),
    "BERT, shifted": lambda: composite(bert, logits_shift=1),
    "BERT with GPT-2": lambda: composite(bert, lambda: tiny_gpt2(n_positions=LONGEST + 1)),
    "RoBERTa": lambda: composite(roberta),
    "FNet": lambda: composite(lambda: bert(FNetConfig, FNetForMaskedLM)),
}
FOREIGN = {
    "BERT": bert,
    "LLaDA": lambda: randomised(LLaDAModelLM(LLaDAConfig())),
    "Dream": lambda: randomised(DreamModel(DreamConfig())),
}


@cache
def network(name: str) -> torch.nn.Module:
    """In float64, where a row of a batch is equal to the row alone to the last token."""
    return NETWORKS[name]().double()


@cache
def foreign_network(name: str) -> torch.nn.Module:
    return FOREIGN[name]().double()


# ------------------------------------------------------------------------------------------------- energies, criteria


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

# --------------------------------------------------------------------------------------------------------- strategies


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


# --------------------------------------------------------------------------------------------------------- properties


@dataclass
class Untouched:
    """What a call must leave as it was: its tensors, the model, and the random numbers that others use."""

    model: torch.nn.Module
    tensors: dict[str, torch.Tensor]

    def __post_init__(self):
        self.copies = {name: x.clone() for name, x in self.tensors.items()}
        self.state = self.state_of_model()
        self.streams = self.global_streams()

    def state_of_model(self) -> tuple:
        weights = [(x.dtype, x.tolist()) for x in self.model.state_dict().values()]
        trained = [x.requires_grad for x in self.model.parameters()]
        modes = [(name, module.training, type(module)) for name, module in self.model.named_modules()]
        hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in self.model.modules()]
        options = getattr(self.model, "generation_config", None)
        return weights, trained, modes, hooks, self.model.config.to_dict(), options and options.to_dict()

    @staticmethod
    def global_streams() -> tuple:
        name, keys, place, *_ = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), place)

    def check(self, own_generator: bool = True) -> None:
        """Without a generator of its own a call draws from the global one of torch, as it says."""
        for name, x in self.tensors.items():
            if x.device.type != "meta":
                assert torch.equal(x, self.copies[name]), f"{name} was changed in place"
        assert self.state_of_model() == self.state, "the model was changed"
        assert not own_generator or self.global_streams() == self.streams, "global random numbers were used"


def call_with(model, generate: Callable, arguments: dict):
    """The output, in full unless the call says otherwise; random numbers of a seed unless it brings its own."""
    given = {"generator": torch.Generator().manual_seed(7), "return_dict_in_generate": True}
    return generate(**(given | copy.copy(arguments)))


def check_output(call: Call, output, model, generate: Callable) -> None:
    """All properties of an output of `call` whose arguments are valid."""
    ids, rows = output.sequences, repeated(call)
    given = call.arguments.get("input_ids")
    width = 0 if given is None else given.shape[1]
    new = call.arguments.get("max_new_tokens") or 0
    ends = may_end(call, model)

    # Visible tokens are kept, no mask is left, and every id is one of the vocabulary
    assert ids.shape == (len(rows), width + new) and ids.dtype == torch.long
    if given is not None:
        visible = given != MASK
        assert torch.equal(ids[:, :width][visible], given[visible])

    assert not (ids == MASK).any()
    assert ((0 <= ids) & (ids < VOCABULARY)).all()

    # The counters tell one story
    masks = torch.tensor([row.count(MASK) + new for row in rows])
    calls, weighed = output.num_denoiser_calls, output.num_energy_calls
    assert (calls <= masks).all()
    assert (weighed <= calls).all()
    assert ((calls > 0) == (masks > 0)).all()

    generated = output.tokens_per_forward * calls
    assert torch.allclose(generated, generated.round(), atol=1e-4)
    assert (generated <= masks + 1e-4).all()
    if not ends:
        assert torch.allclose(generated.float(), masks.float(), atol=1e-3)
    if output.energies is None:
        assert not weighed.any() and output.effective_sample_size is None and output.chosen is None
    else:
        happened = ~output.energies.isnan()
        k = output.energies.shape[-1]
        assert torch.equal(happened.any(-1).sum(0), weighed)
        assert torch.equal(happened.all(-1), happened.any(-1))
        assert torch.equal(output.chosen >= 0, happened.all(-1)) and (output.chosen < k).all()
        sizes = output.effective_sample_size[happened.all(-1)]
        assert ((sizes > 1 - 1e-6) & (sizes < k + 1e-6)).all()
    if output.history is not None:
        check_history(output, ends)

    # The same seed gives the same tokens
    again = call_with(model, generate, call.arguments)
    assert torch.equal(again.sequences, ids) and torch.equal(again.num_denoiser_calls, calls)


def may_end(call: Call, model) -> bool:
    """Whether a text of this call can be shorter than the masks it had."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    eos = call.arguments.get("eos_token_id", eos)
    return eos is not None or bool(call.arguments.get("stopping_criteria"))


def check_history(output, ends: bool) -> None:
    """Every step keeps what is revealed, and the last one is the output."""
    for before, after in zip(output.history, output.history[1:], strict=False):
        kept = before != MASK
        assert ends or torch.equal(before[kept], after[kept])
    assert ends or torch.equal(output.history[-1], output.sequences)


def check_rows_alone(call: Call, output, generate: Callable) -> None:
    """Without sampling, every row is what it is alone."""
    new = call.arguments.get("max_new_tokens") or 0
    options = {name: x for name, x in call.arguments.items() if name not in ("attention_mask", "batch_size")}
    for i, row in enumerate(repeated(call)):
        options["input_ids"] = torch.tensor([row], dtype=torch.long).view(1, -1)
        alone = call_with(None, generate, options).sequences[0]
        found = output.sequences[i]
        real = torch.ones_like(found, dtype=torch.bool)
        if (mask := call.arguments.get("attention_mask")) is not None:
            real = torch.cat([mask[i % len(mask)].bool(), torch.ones(new, dtype=torch.bool)])
        assert torch.equal(found[real], alone), f"row {i} alone is {alone.tolist()}, in the batch {found.tolist()}"


def repeated(call: Call) -> list[list[int]]:
    return [row for row in call.rows for _ in range(call.arguments.get("num_return_sequences") or 1)]


def check_refusal(error: ValueError) -> None:
    """A sentence that says something, not the words of an inner library."""
    text = str(error)
    assert len(text.split()) >= 6 and text.rstrip().endswith((".", ")", "?")), f"no advice: {text!r}"


__all__ = ["Call", "Untouched", "check_output", "check_refusal", "check_rows_alone", "custom_generate", "valid_calls"]
