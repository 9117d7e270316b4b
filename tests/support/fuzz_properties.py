"""What must hold of every random call of `generate()`.

`check_output` holds for every call that is not refused, `check_refusal` for the others, and
`Untouched` for all.
"""

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from fuzz_calls import Call
from fuzz_networks import MASK, VOCABULARY


@dataclass
class Untouched:
    """All that a call must leave as it was.

    These are its tensors, the model, and the random numbers that others use.
    """

    model: torch.nn.Module
    tensors: dict[str, torch.Tensor]

    def __post_init__(self):
        self.copies = {name: x.clone() for name, x in self.tensors.items()}
        self.state = self.state_of_model()
        self.streams = self.global_streams()

    def state_of_model(self) -> tuple:
        weights = [(x.dtype, x.tolist()) for x in self.model.state_dict().values()]
        trained = [x.requires_grad for x in self.model.parameters()]

        modes = []
        hooks = []
        for name, module in self.model.named_modules():
            modes.append((name, module.training, type(module)))
            hooks.append(len(module._forward_pre_hooks) + len(module._forward_hooks))

        config = self.model.config.to_dict()
        options = getattr(self.model, "generation_config", None)
        if options is not None:
            options = options.to_dict()
        return weights, trained, modes, hooks, config, options

    @staticmethod
    def global_streams() -> tuple:
        name, keys, place, *_ = np.random.get_state()
        of_torch = torch.get_rng_state().tolist()
        of_numpy = (name, keys.tolist(), place)
        return of_torch, random.getstate(), of_numpy

    def check(self, own_generator: bool = True) -> None:
        """Compare with the state before the call.

        Without a generator of its own a call draws from the global one of torch, as it says.
        """
        for name, x in self.tensors.items():
            if x.device.type != "meta":
                assert torch.equal(x, self.copies[name]), f"{name} was changed in place"

        assert self.state_of_model() == self.state, "the model was changed"
        if own_generator:
            assert self.global_streams() == self.streams, "global random numbers were used"


def call_with(model, generate: Callable, arguments: dict):
    """Return the output of a call, in full unless the call says otherwise.

    Its random numbers come from a seed unless it brings its own.
    """
    defaults = {
        "generator": torch.Generator().manual_seed(7),
        "return_dict_in_generate": True,
    }
    return generate(**(defaults | copy.copy(arguments)))


def check_output(call: Call, output, model, generate: Callable) -> None:
    """Check all properties of an output of `call` whose arguments are valid."""
    ends = may_end(call, model)
    check_tokens(call, output)
    check_calls(call, output, ends)

    if output.energies is None:
        assert not output.num_energy_calls.any()
        assert output.effective_sample_size is None
        assert output.chosen is None
    else:
        check_candidates(output)
    if output.history is not None:
        check_history(output, ends)

    # The same seed gives the same tokens
    again = call_with(model, generate, call.arguments)
    assert torch.equal(again.sequences, output.sequences)
    assert torch.equal(again.num_denoiser_calls, output.num_denoiser_calls)


def check_tokens(call: Call, output) -> None:
    """Visible tokens are kept, no mask is left, and every id is one of the vocabulary."""
    ids = output.sequences
    given = call.arguments.get("input_ids")
    width = 0 if given is None else given.shape[1]

    assert ids.shape == (len(call.rows), width + new_tokens(call))
    assert ids.dtype == torch.long
    if given is not None:
        visible = given != MASK
        assert torch.equal(ids[:, :width][visible], given[visible])

    assert not (ids == MASK).any()
    assert ((0 <= ids) & (ids < VOCABULARY)).all()


def check_calls(call: Call, output, ends: bool) -> None:
    """The counters tell one story."""
    masks = torch.tensor([row.count(MASK) + new_tokens(call) for row in call.rows])
    calls = output.num_denoiser_calls
    assert (calls <= masks).all()
    assert (output.num_energy_calls <= calls).all()
    assert ((calls > 0) == (masks > 0)).all()

    generated = output.tokens_per_forward * calls
    assert torch.allclose(generated, generated.round(), atol=1e-4)
    assert (generated <= masks + 1e-4).all()
    if not ends:
        assert torch.allclose(generated.float(), masks.float(), atol=1e-3)


def check_candidates(output) -> None:
    """A step has all energies of a row and a choice among them, or none."""
    # (T, B, k) -> (T, B)
    k = output.energies.shape[-1]
    known = ~output.energies.isnan()
    happened = known.all(-1)
    assert torch.equal(happened, known.any(-1))
    assert torch.equal(happened.sum(0), output.num_energy_calls)

    assert torch.equal(output.chosen >= 0, happened)
    assert (output.chosen < k).all()

    sizes = output.effective_sample_size[happened]
    assert ((sizes > 1 - 1e-6) & (sizes < k + 1e-6)).all()


def may_end(call: Call, model) -> bool:
    """Whether a text of this call can be shorter than the masks it had."""
    config = getattr(model, "generation_config", None)
    eos = call.arguments.get("eos_token_id", getattr(config, "eos_token_id", None))
    return eos is not None or bool(call.arguments.get("stopping_criteria"))


def check_history(output, ends: bool) -> None:
    """Every step keeps what is revealed, and the last one is the output."""
    if ends:
        return

    for before, after in itertools.pairwise(output.history):
        kept = before != MASK
        assert torch.equal(before[kept], after[kept])
    assert torch.equal(output.history[-1], output.sequences)


def check_rows_alone(call: Call, output, generate: Callable) -> None:
    """Without sampling, every row is what it is alone."""
    options = dict(call.arguments)
    options.pop("batch_size", None)
    attention_mask = options.pop("attention_mask", None)

    for i, row in enumerate(call.rows):
        options["input_ids"] = torch.tensor([row], dtype=torch.long).view(1, -1)
        alone = call_with(None, generate, options).sequences[0]

        found = output.sequences[i]
        if attention_mask is not None:
            real = attention_mask[i].bool()
            made = torch.ones(new_tokens(call), dtype=torch.bool)
            found = found[torch.cat([real, made])]

        text = f"row {i} alone is {alone.tolist()}, in the batch {found.tolist()}"
        assert torch.equal(found, alone), text


def new_tokens(call: Call) -> int:
    """The number of tokens that a call adds behind its prompts."""
    return call.arguments.get("max_new_tokens") or 0


def check_refusal(error: ValueError) -> None:
    """A sentence that says something, not the words of an inner library."""
    text = str(error)
    says_something = len(text.split()) >= 6 and text.rstrip().endswith((".", ")", "?"))
    assert says_something, f"no advice: {text!r}"
