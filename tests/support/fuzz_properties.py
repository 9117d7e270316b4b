"""What must hold of every random call of `generate()`.

`check_output` holds for every call that is not refused, `check_refusal` for the others, and `Untouched` for all.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from fuzz_calls import Call
from fuzz_networks import MASK, VOCABULARY


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
