"""Rows of a batch have the law that they have alone, also in blocks and of unequal length (C15)."""

import itertools

import numpy as np
import pytest
import torch
from exact import MASK, chain_law, distance
from exact_sampling import TV, N, resampled_law, sample, table_energy
from exact_windows import (
    ABSENT,
    WINDOWS,
    WindowDenoiser,
    blocks_law,
    plain_step,
    random_windows,
    weighed_step,
    window_index,
)

from edlm_hf import EDLMForMaskedDiffusion


def test_rows_are_independent_of_each_other():
    """Two kinds of rows in one batch: no covariance between neighbours, laws as alone (C15)."""
    ids = torch.tensor([[MASK] * 4, [MASK, 0, MASK, MASK]]).repeat(N, 1)
    tokens = sample(ids=ids, energy=table_energy, num_candidates=2, max_denoising_steps=2)
    tilted = resampled_law()
    assert distance(tokens[::2], chain_law(tilted, 2)) < TV
    assert distance(tokens[1::2], chain_law(tilted, 2, start=[MASK, 0, MASK, MASK])) < TV
    first, second = tokens[::2].double(), tokens[1::2].double()
    correlation = np.corrcoef(torch.cat([first, second[:, [0, 2, 3]]], 1).T.numpy())[:4, 4:]
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


WINDOW_TABLE = random_windows(seed=5)
WINDOW_ENERGY = np.random.default_rng(6).normal(size=(WINDOWS, WINDOWS)) * 1.5
# With three new tokens a model of four sees the first three texts whole, and of the others what fits.
PROMPTS = [(), (1,), (MASK,), (2, 0), (0, 1, 2), (1, MASK, 0, 2)]


def window_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    real = attention_mask.bool()
    noisy = window_index(torch.where(real, noisy_ids, ABSENT).numpy())
    candidates = window_index(torch.where(real.unsqueeze(1), candidate_ids, ABSENT).numpy())
    return torch.tensor(WINDOW_ENERGY[noisy[:, None], candidates])


def padded_rows(prompts, side):
    """Ids and attention mask of texts with padding, which is a token like any other, on the left, right or both."""
    width = max(map(len, prompts)) + (side == "both")
    ids, mask = torch.full((len(prompts), width), 2), torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        begin = {"left": width - len(prompt), "right": 0, "both": (width - len(prompt)) // 2}[side]
        ids[i, begin : begin + len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        mask[i, begin : begin + len(prompt)] = 1
    return ids, mask


def check_law_of_row(tokens, real, law, count):
    """The texts (count, width) have a law, within twice the noise of so many draws."""
    texts, found = torch.unique(tokens[:, real], dim=0, return_counts=True)
    frequencies = {tuple(text.tolist()): n.item() / count for text, n in zip(texts, found, strict=True)}
    assert abs(sum(law.values()) - 1) < 1e-9 and set(frequencies) <= set(law)
    distance = sum(abs(frequencies.get(text, 0) - p) for text, p in law.items()) / 2
    assert distance < 0.6 * (len(law) / count) ** 0.5


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("weighed", [None, "sequence", "revealed"])
def test_rows_of_unequal_length_have_the_law_they_have_alone(side, weighed):
    """In blocks, where some fit the model and others do not."""
    count, options = 30_000, {"max_new_tokens": 3, "block_length": 2, "max_denoising_steps": 2}
    law_of_step = plain_step
    if weighed is not None:
        law_of_step = weighed_step(WINDOW_ENERGY, weighed)
        options |= {"energy": window_energy, "num_candidates": 2, "energy_scope": weighed}

    network = EDLMForMaskedDiffusion.from_components(WindowDenoiser(WINDOW_TABLE))
    ids, mask = padded_rows(PROMPTS, side)
    tokens = sample(network, ids.repeat(count, 1), attention_mask=mask.repeat(count, 1), **options)

    for i, prompt in enumerate(PROMPTS):
        law = blocks_law(prompt, 3, 2, 2, WINDOW_TABLE, law_of_step)
        real = torch.cat([mask[i].bool(), torch.ones(3, dtype=torch.bool)])
        check_law_of_row(tokens[i :: len(PROMPTS)], real, law, count)


def test_rows_that_reveal_one_token_at_a_time_have_the_law_they_have_alone():
    count = 30_000
    network = EDLMForMaskedDiffusion.from_components(WindowDenoiser(WINDOW_TABLE))
    ids, mask = padded_rows(PROMPTS, "right")
    options = {"max_new_tokens": 3, "block_length": 2, "sampler": "first_hitting"}
    tokens = sample(network, ids.repeat(count, 1), attention_mask=mask.repeat(count, 1), **options)

    for i, prompt in enumerate(PROMPTS):
        law = blocks_law(prompt, 3, 2, None, WINDOW_TABLE, plain_step)
        real = torch.cat([mask[i].bool(), torch.ones(3, dtype=torch.bool)])
        check_law_of_row(tokens[i :: len(PROMPTS)], real, law, count)


@pytest.mark.parametrize("options", [{"max_denoising_steps": 3}, {"sampler": "first_hitting"}])
def test_likeliest_tokens_of_a_row_do_not_depend_on_its_neighbours(options):
    network = EDLMForMaskedDiffusion.from_components(WindowDenoiser(WINDOW_TABLE))
    options = options | {"max_new_tokens": 5, "block_length": 2, "do_sample": False}
    prompts = [prompt for prompt in itertools.product(range(MASK + 1), repeat=3)] + [(0,), (1,), (2, 1), (MASK, 0)]
    ids, mask = padded_rows(prompts, "right")
    together = network.generate(ids, attention_mask=mask, **options)
    for i, prompt in enumerate(prompts):
        alone = network.generate(torch.tensor([prompt]), **options)[0]
        assert torch.equal(together[i, torch.cat([mask[i].bool(), torch.ones(5, dtype=torch.bool)])], alone)
