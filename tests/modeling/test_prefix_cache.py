"""Autoregressive energies with a common prompt: exact for every kind of cache, and run once where that is exact."""

import pytest
import torch
from autoregressive_energies import by_definition, shapes_read
from cached_networks import (
    LENGTH,
    ORDINARY,
    OTHERS,
    PROMPT,
    SIZES,
    VOCAB,
    build,
    candidates,
    with_energy,
)
from checkpointing import switch_checkpointing
from published import randomised, tiny_causal

from edlm_hf.modeling.prefix_cache import longest_text_with_fixed_frequencies


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_models_whose_caches_are_not_ordinary_read_whole_texts(name):
    model = with_energy(build(name, OTHERS[name]))
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    shapes = shapes_read(model.energy_model)
    for _ in range(2):
        shapes.clear()
        torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)

    assert shapes == [(6, LENGTH)]  # from the second call on nothing is read in vain
    short, noisy = candidates(prompt=8)
    torch.testing.assert_close(
        model.energy(short, noisy),
        by_definition(model, short, noisy),
        rtol=0,
        atol=1e-3,
    )


@torch.no_grad()
@pytest.mark.parametrize("name", [*ORDINARY, "MDLM"])
def test_a_common_prompt_runs_once_where_the_cache_is_ordinary(name):
    if name == "MDLM":
        model = with_energy(tiny_causal(vocab_size=VOCAB, model_length=64, bos_token_id=0))
    else:
        model = with_energy(build(name, ORDINARY[name]))

    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    shapes = shapes_read(getattr(model.energy_model, "backbone", model.energy_model))
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


@torch.no_grad()
def test_positions_that_are_counted_by_tokens_go_on_from_no_cache():
    sizes = SIZES | {"is_decoder": True, "max_position_embeddings": 66}
    model = with_energy(build("Roberta", sizes))  # a padding token, 0, is in front of the texts
    ids, noisy = candidates()
    ids[:, :, 5] = noisy[:, 5] = 0
    torch.testing.assert_close(
        model.energy(ids, noisy),
        by_definition(model, ids, noisy),
        rtol=0,
        atol=1e-3,
    )


@torch.no_grad()
def test_a_window_of_attention_is_shared_up_to_its_length():
    model = with_energy(build("Mistral", SIZES | {"sliding_window": 32}))
    ids, noisy = candidates()
    shapes = shapes_read(model.energy_model)
    torch.testing.assert_close(
        model.energy(ids, noisy),
        by_definition(model, ids, noisy),
        rtol=0,
        atol=1e-3,
    )
    shapes.clear()
    short = ids[..., :31], noisy[:, :31]  # the start token in front
    torch.testing.assert_close(model.energy(*short), by_definition(model, *short), rtol=0, atol=1e-3)
    assert shapes[:2] == [(2, PROMPT), (6, 31 - PROMPT)]


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_checkpointing_on_has_the_energies_that_it_has_without(training):
    causal = build("Llama", SIZES)
    model = with_energy(causal)
    ids, noisy = candidates()
    expected = by_definition(model, ids, noisy)
    switch_checkpointing(causal, True)
    model.train(training)  # where checkpointing is on, no cache comes back
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)

    model.eval()
    shapes = shapes_read(causal)
    torch.testing.assert_close(model.energy(ids, noisy), expected, rtol=0, atol=1e-3)
    assert shapes == [(2, PROMPT), (6, LENGTH - PROMPT)]


def test_energies_of_a_common_prompt_have_gradients():
    model = with_energy(build("GPT2", ORDINARY["GPT2"]))
    ids, noisy = candidates()
    gradients = []
    for prompt in (ids[:, :1], ids):  # alone, and beside others
        model.zero_grad()
        model.energy(prompt, noisy)[:, 0].sum().backward()
        gradients.append(model.energy_model.transformer.wte.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_frequencies_that_depend_on_the_length_bound_what_is_shared():
    model = randomised(build("Phi3", OTHERS["Phi3"]))
    assert longest_text_with_fixed_frequencies(model) == 30
    assert longest_text_with_fixed_frequencies(build("Llama", SIZES)) == float("inf")
    model.config.rope_parameters = {
        "full_attention": {"rope_type": "dynamic"},
        "other": {"rope_type": "default"},
    }
    assert longest_text_with_fixed_frequencies(model) == 64
