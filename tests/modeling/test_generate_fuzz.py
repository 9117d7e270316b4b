"""Random calls of `generate()`: a ValueError with advice, or an output that has all properties.

500 calls in `make test`. `EDLM_FUZZ_CASES=10000` sets another number, as `make nightly` does.
"""

import os
from collections import Counter
from functools import partial

import torch
from fuzz_calls import Call, valid_calls, wild_calls
from fuzz_networks import FOREIGN, MASK, NETWORKS, VOCABULARY, foreign_network, network
from fuzz_properties import Untouched, call_with, check_output, check_refusal, check_rows_alone
from hypothesis import HealthCheck, given, settings

from edlm_hf.modeling.custom_generate import generate as custom_generate

CASES = int(os.environ.get("EDLM_FUZZ_CASES", 500))


def drawn(share: float, strategy):
    """Run a test on its share of the cases, the same ones in every run."""

    def decorate(test):
        limits = settings(
            max_examples=max(1, round(CASES * share)),
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        return limits(given(strategy)(test))

    return decorate


def tensors_of(call: Call) -> dict[str, torch.Tensor]:
    return {name: x for name, x in call.arguments.items() if torch.is_tensor(x)}


def check_valid(call: Call, model, generate) -> None:
    before = Untouched(model, tensors_of(call))
    output = call_with(model, generate, call.arguments)
    check_output(call, output, model, generate)
    if call.arguments.get("do_sample") is False:
        check_rows_alone(call, output, generate)
    before.check()


@drawn(0.4, valid_calls(tuple(NETWORKS)))
def test_every_valid_call_has_all_properties(call):
    model = network(call.model)
    check_valid(call, model, model.generate)


def check_wild(call: Call, model, generate, outcomes: Counter) -> None:
    before = Untouched(model, tensors_of(call))
    try:
        output = call_with(model, generate, call.arguments)
    except ValueError as error:
        check_refusal(error)
        outcomes["refused"] += 1
    else:
        ids = output if torch.is_tensor(output) else output.sequences
        assert ids.dtype == torch.long and ids.dim() == 2
        assert not (ids == MASK).any() and ((0 <= ids) & (ids < VOCABULARY)).all()
        outcomes["passed"] += 1

    before.check(own_generator=call.arguments.get("generator", True) is not None)


def test_any_call_is_refused_with_advice_or_has_all_properties():
    outcomes = Counter()

    @drawn(0.4, wild_calls(tuple(NETWORKS)))
    def check(call):
        model = network(call.model)
        check_wild(call, model, model.generate, outcomes)

    check()
    assert min(outcomes["refused"], outcomes["passed"]) > 0.1 * outcomes.total(), outcomes


@drawn(0.1, valid_calls(tuple(FOREIGN)))
def test_every_valid_call_of_custom_generate_has_all_properties(call):
    model = foreign_network(call.model)
    check_valid(call, model, partial(custom_generate, model, mask_token_id=MASK))


def test_any_call_of_custom_generate_is_refused_with_advice_or_has_all_properties():
    outcomes = Counter()

    @drawn(0.1, wild_calls(tuple(FOREIGN)))
    def check(call):
        model = foreign_network(call.model)
        check_wild(call, model, partial(custom_generate, model, mask_token_id=MASK), outcomes)

    check()
    assert min(outcomes["refused"], outcomes["passed"]) > 0.1 * outcomes.total(), outcomes
