"""Every sampler and option of `generate()` gives the tokens of the CPU on a device."""

import numpy as np
import pytest
import torch
from device_models import (
    MODELS,
    NOTHING,
    OF_DENOISERS,
    RAGGED,
    REAL,
    TEXTS,
    both,
    build,
    check_same_tokens,
    nce,
    sample,
)
from exact import MASK as EXACT_MASK
from exact import (
    SEQUENCES,
    STATES,
    L,
    TableDenoiser,
    chain_law,
    marginals,
    perturbed,
    product_law,
    random_joint,
)
from published import tiny_denoiser, tiny_gpt2

from edlm_hf.modeling.custom_generate import generate as custom_generate


@pytest.mark.parametrize("name", MODELS)
def test_all_samplers_give_the_tokens_of_the_cpu(accelerator, rules, name):
    if rules == "mps" and name not in ("time", "ar", "nce", "bert"):
        pytest.skip("A denoiser and an energy of every kind are enough for the rules of MPS")
    on_cpu, on_device = both(accelerator, name)

    for number, sampler in enumerate(OF_DENOISERS):
        options = {"sampler": sampler, "max_denoising_steps": 2, "num_candidates": 2}
        if sampler in ("edit", "low_confidence"):
            options["num_candidates"] = 1

        # Every second sampler fills holes and blocks of ragged rows, the others rows from nothing
        prompt = RAGGED | {"block_length": 3} if number % 2 else NOTHING
        check_same_tokens(accelerator, on_cpu, on_device, **options, **prompt)


OPTIONS = {
    "greedy": {"do_sample": False},
    "greedy, one at a time": {"do_sample": False, "sampler": "first_hitting"},
    "filters": {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01},
    "guidance": {"guidance_scale": 2.0},
    "corrector": {"corrector_sweeps": 1.0},
    "window": {"energy_window": (0.2, 0.8)},
    "callable energy": {"energy": lambda ids, noisy, log_probs, real: log_probs.cpu()},
    "several rows": {"num_return_sequences": 2},
    "chunks": {"energy_chunk_size": 2},
}


@pytest.mark.parametrize("name", ["ar", "nce"])
def test_all_options_give_the_tokens_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    for options in OPTIONS.values():
        check_same_tokens(accelerator, on_cpu, on_device, num_candidates=2, max_denoising_steps=3, **options, **RAGGED)


@pytest.mark.parametrize("name", ["ar", "drafts", "gpt2", "coar"])
def test_speculative_sampling_gives_the_tokens_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    options = {"sampler": "speculative", "draft_length": 2}
    prompts = {"input_ids": TEXTS, "attention_mask": REAL, "max_new_tokens": 4}
    for extra in (
        NOTHING,
        prompts,
        prompts | {"do_sample": False},
        prompts | {"block_length": 3, "temperature": 0.7},
    ):
        check_same_tokens(accelerator, on_cpu, on_device, **options, **extra)


def test_revealed_blocks_have_an_autoregressive_energy(accelerator, rules):
    on_cpu, on_device = both(accelerator, "ar")
    options = {
        "energy_scope": "revealed",
        "max_denoising_steps": 1,
        "block_length": 3,
        "num_candidates": 2,
    }
    check_same_tokens(accelerator, on_cpu, on_device, **options, **NOTHING)


@pytest.mark.parametrize("name", ["ar", "nce"])
def test_records_are_those_of_the_cpu(accelerator, rules, name):
    on_cpu, on_device = both(accelerator, name)
    options = {"return_dict_in_generate": True, "output_history": True, "output_log_probs": True}
    options |= {"max_denoising_steps": 3, "num_candidates": 3} | NOTHING
    expected = sample(on_cpu, **options)
    output = sample(on_device, **options)

    assert output.sequences.tolist() == expected.sequences.tolist()
    assert len(output.history) == len(expected.history)
    for field in ("energies", "effective_sample_size", "log_probs"):
        of_device = output[field].cpu().float()
        torch.testing.assert_close(
            of_device,
            expected[field].float(),
            equal_nan=True,
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("energy", [None, tiny_gpt2, nce], ids=["no energy", "gpt2", "nce"])
def test_custom_generate_takes_prompts_of_the_cpu(accelerator, rules, energy):
    def tokens(place):
        denoiser = place(tiny_denoiser())
        energy_model = None if energy is None else place(energy())
        options = {"energy_model": energy_model, "energy_type": "nce" if energy is nce else None}
        generator = torch.Generator().manual_seed(0)
        sizes = {"max_denoising_steps": 3, "num_candidates": 2}
        return custom_generate(denoiser, generator=generator, **options, **sizes, **RAGGED).tolist()

    assert tokens(accelerator.move) == tokens(lambda network: network)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_samples_have_their_enumerated_law(accelerator, num_steps):
    """20,000 texts, whose total variation distance is about 0.02 by chance."""
    table = perturbed(marginals(random_joint(seed=3)), seed=1)
    law = chain_law(np.stack([product_law(table, state) for state in range(len(STATES))]), num_steps)
    model = accelerator.move(build(TableDenoiser(table), mask_token_id=EXACT_MASK))

    # Random numbers of the device's own generator
    torch.manual_seed(0)
    empty = accelerator.on_device(torch.full((20_000, L), EXACT_MASK))
    texts = model.generate(empty, max_denoising_steps=num_steps).cpu().numpy()
    index = texts @ (3 ** np.arange(L)[::-1])
    frequencies = np.bincount(index, minlength=len(SEQUENCES)) / len(index)
    assert np.abs(frequencies - law).sum() / 2 < 0.04
