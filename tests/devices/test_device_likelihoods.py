"""Bounds and likelihoods of models on a device are those of the CPU."""

import copy

import pytest
import torch
from device_models import OF_DENOISERS, TEXTS, both, build
from published import tiny_causal, tiny_denoiser, tiny_gpt2

import edlm_hf.evaluation as evaluation


def value_of(result) -> float:
    """The number that an evaluation gives, or the sum of its numbers."""
    return result.value if hasattr(result, "value") else sum(entropy.value for entropy in result.entropies)


BOUNDS = {
    "nelbo": [{}, {"importance_sampling": True}],
    "discrete_nelbo": [{"num_steps": 3}],
    "paper_nll": [{"log_partition": "one"}, {"log_partition": "upper", "partition_samples": 4}],
    "h_profile": [{"times": (0.5, 1.0)}],
    "sampler_bound": [
        {"num_steps": 3, "whole_path": True},
        {"num_steps": 3, "inner_copies": 2},
        {"num_steps": 3, "block_length": 3},
        *({"num_steps": 3, "sampler": name} for name in OF_DENOISERS if name not in ("low_confidence", "edit")),
    ],
}


@pytest.mark.parametrize("name", ["mdlm", "ar", "nce", "revealed"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_are_those_of_the_cpu(accelerator, rules, bound, name):
    if (bound, name) == ("paper_nll", "revealed"):
        pytest.skip("The paper's estimator takes the joint over all masks")
    on_cpu, on_device = both(accelerator, name)

    for options in BOUNDS[bound]:
        options = options | {"num_samples": 2}
        if bound == "sampler_bound":
            options["num_candidates"] = 2
        expected, value = (
            value_of(getattr(evaluation, bound)(model, TEXTS, **options)) for model in (on_cpu, on_device)
        )
        assert value == pytest.approx(expected, rel=1e-4), options


@pytest.mark.parametrize("network", [tiny_causal, tiny_gpt2], ids=["ours", "gpt2"])
def test_autoregressive_likelihoods_are_those_of_the_cpu(accelerator, rules, network):
    causal = network(bos_token_id=10)
    composite = build(tiny_denoiser(), copy.deepcopy(causal))
    for model in (causal, composite):
        expected = evaluation.autoregressive_nll(model, TEXTS).value
        value = evaluation.autoregressive_nll(accelerator.move(copy.deepcopy(model)), TEXTS).value
        assert value == pytest.approx(expected, rel=1e-5)


def test_bounds_of_log_z_take_energies_of_a_device(accelerator, rules):
    energies = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) / 10
    expected = evaluation.log_partition_bounds(energies)
    bounds = evaluation.log_partition_bounds(accelerator.on_device(energies))
    assert bounds.lower.value == pytest.approx(expected.lower.value)
    assert bounds.upper.value == pytest.approx(expected.upper.value)
