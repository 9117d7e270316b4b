"""Texts and arguments that likelihoods refuse, and devices, batches and padding that change none of them."""

import math

import numpy as np
import pytest
import torch
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.evaluation import (
    autoregressive_nll,
    discrete_nelbo,
    h_profile,
    nelbo,
    paper_nll,
    sampler_bound,
)

ESTIMATORS = {
    "nelbo": nelbo,
    "discrete_nelbo": lambda *a, **k: discrete_nelbo(*a, num_steps=5, **k),
    "sampler_bound": lambda *a, **k: sampler_bound(*a, num_steps=5, num_candidates=3, inner_copies=2, **k),
    "paper_nll": lambda *a, **k: paper_nll(*a, log_partition="lower", partition_samples=4, **k),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batches_and_padding_change_nothing(name):
    network = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(),
        tiny_causal(bos_token_id=0),
        energy_type="ar",
    )
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 12, (n,), generator=generator).tolist() for n in (5, 12, 8, 1)]
    padded = torch.zeros(4, 12, dtype=torch.long)
    mask = torch.zeros(4, 12, dtype=torch.long)
    for i, row in enumerate(rows):  # on the right, on the left
        at = slice(0, len(row)) if i % 2 else slice(12 - len(row), 12)
        padded[i, at], mask[i, at] = torch.tensor(row), 1

    first = ESTIMATORS[name](network, rows, num_samples=4, batch_size=1)
    others = [
        ESTIMATORS[name](network, rows, num_samples=4, batch_size=7),
        ESTIMATORS[name](network, padded, mask, num_samples=4, batch_size=16),
    ]
    for other in others:
        assert other.value == pytest.approx(first.value, abs=1e-5)
        assert other.standard_error == pytest.approx(first.standard_error, abs=1e-5)
    assert ESTIMATORS[name](network, rows, num_samples=4, seed=1).value != first.value

    head = ESTIMATORS[name](network, rows[:2], num_samples=4)
    # A text's noise is its own
    assert head.sequence_nats == pytest.approx(first.sequence_nats[:2], abs=1e-4)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no texts"),
        ([[]], {}, "none counts"),
        ([[1, 2], [0]], {}, "Text 1 .* none counts"),
        ([[1, 12]], {}, "mask token"),
        ([[1, 40]], {}, "ids from 1 to 40"),
        ([[1] * 13], {}, "at most 12.*document_windows"),
        ([[1, 2]], {"num_samples": 3}, "num_samples is 3"),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
        ([[1, 2]], {"attention_mask": torch.ones(1, 3)}, "differ in shape"),
    ],
)
def test_bad_texts_are_refused_with_advice(texts, options, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(bos_token_id=0), texts, **options)


def test_bad_arguments_are_refused_with_advice():
    network, texts = tiny_denoiser(), [[1, 2, 3]]
    with pytest.raises(ValueError, match="inner_copies is 0"):
        sampler_bound(network, texts, num_steps=2, inner_copies=0)
    with pytest.raises(ValueError, match="max_denoising_steps is 0"):
        discrete_nelbo(network, texts, num_steps=0)
    with pytest.raises(ValueError, match="log_partition is 'both'"):
        paper_nll(network, texts, log_partition="both")
    with pytest.raises(ValueError, match="times is"):
        h_profile(network, texts, times=(0.0, 0.5))
    with pytest.raises(ValueError, match="from_components"):
        nelbo(tiny_gpt2(), texts)

    for bound in (sampler_bound, paper_nll):
        steps = {"num_steps": 4} if bound is sampler_bound else {}
        with pytest.raises(ValueError, match="no use for max_new_tokens here.*energy_window"):
            bound(network, texts, max_new_tokens=5, **steps)

    with pytest.raises(ValueError, match="no use for max_denoising_steps here"):
        sampler_bound(network, texts, num_steps=4, max_denoising_steps=99)
    with pytest.raises(ValueError, match="first one is context"):
        autoregressive_nll(tiny_gpt2(bos_token_id=None), [[1]])


@pytest.mark.parametrize("kind", ["denoiser", "ar", "nce"])
def test_any_default_device_gives_the_same_likelihoods(kind):
    """The default is `meta` here, where nothing can be computed: every tensor must say where it is."""
    model = tiny_denoiser()
    if kind == "ar":
        model = EDLMForMaskedDiffusion.from_components(model, tiny_causal(bos_token_id=10))
    if kind == "nce":
        model = EDLMForMaskedDiffusion.from_components(
            model,
            randomised(EDLMEnergyModel(tiny_config())),
        )
    texts = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(texts)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "num_samples": 2}

    def values():
        yield nelbo(model, texts, importance_sampling=True, **options).value
        yield discrete_nelbo(model, texts.tolist(), num_steps=3, num_samples=2).value
        yield sampler_bound(model, texts, num_steps=3, num_candidates=2, inner_copies=2, **options).value
        yield paper_nll(model, texts, log_partition="upper", partition_samples=3, **options).value
        yield h_profile(model, texts, times=[0.5, 1]).entropies[0].value
        if kind == "ar":
            yield autoregressive_nll(model, texts, mask).value

    expected = list(values())
    with torch.device("meta"):
        assert list(values()) == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["abc"], "tokenize it first"),
        ("abc", "input_ids is a str"),
        (None, "input_ids is a NoneType"),
        (iter([[3, 4]]), "or n lists of ids"),
        ([[3.7, 4.2]], "token ids are whole numbers"),
    ],
)
def test_what_are_no_token_ids_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(), inputs)


@pytest.mark.parametrize("seed", [1.5, None, -1, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="must be a whole number of at least 0"):
        nelbo(tiny_denoiser(), [[3, 4]], seed=seed)


@pytest.mark.parametrize("value", ["2", 2.0, 2.5, None, True, 0])
@pytest.mark.parametrize("name", ["num_samples", "batch_size", "inner_copies"])
def test_numbers_of_samples_rows_and_copies_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, but it must be"):
        sampler_bound(tiny_denoiser(), [[3, 4]], num_steps=2, num_candidates=1, **{name: value})


def test_a_number_of_partition_samples_is_a_whole_number():
    with pytest.raises(ValueError, match="partition_samples is 2.5, but it must be an integer of at least 2"):
        paper_nll(tiny_denoiser(), [[3, 4]], partition_samples=2.5, log_partition="lower")


@pytest.mark.parametrize("name", ["attention_mask", "scored"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2), "differ in shape"),
        ([True, True], "differ in shape"),
        (torch.ones(2, 2, 1), "differ in shape"),
        (torch.full((2, 2), math.nan), "values besides 0 and 1"),
        (torch.tensor([[0.3, 0.9], [1.0, 1.0]]), "values besides 0 and 1"),
        ([[0, 3], [1, 1]], "values besides 0 and 1"),
        ("yes", "holds no 0 and 1"),
        (1, "holds no 0 and 1"),
    ],
)
def test_a_mask_has_one_0_or_1_for_every_token(name, mask, message):
    with pytest.raises(ValueError, match=message):
        nelbo(tiny_denoiser(), [[3, 4], [5, 6]], **{name: mask})


def test_a_mask_of_0_and_1_of_any_type_leaves_out_the_same_tokens():
    options = {"num_samples": 2, "seed": 1}
    expected = nelbo(tiny_denoiser(), [[3, 4], [5]], **options).value
    for mask in ([[1, 1], [1, 0]], np.array([[True, True], [True, False]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])):
        assert nelbo(tiny_denoiser(), [[3, 4], [5, 6]], mask, **options).value == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [[0.5, 1.5], [0, -1], 3, "ab", [0]])
def test_texts_are_numbered_by_whole_numbers(numbers):
    with pytest.raises(ValueError, match="[Tt]he number of a text is|numbers of the texts are|There are 1 numbers"):
        nelbo(tiny_denoiser(), [[3, 4], [5, 6]], text_numbers=numbers)


@pytest.mark.parametrize("times", [0.5, "a", [None], [math.nan]])
def test_times_are_several_numbers(times):
    with pytest.raises(ValueError, match=r"times is .*, but .* in \(0, 1\]"):
        h_profile(tiny_denoiser(), [[3, 4]], times=times)


@pytest.mark.parametrize("count", [0, -3, math.nan, math.inf, "12"])
def test_bits_are_per_a_positive_number_of_units(count):
    found = nelbo(tiny_denoiser(), [[3, 4]], num_samples=2)
    with pytest.raises(ValueError, match=f"count is {count!r}, but it must be a positive number: the characters"):
        found.bits_per("character", count)
