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
    empty = [MASK, MASK, MASK, MASK]
    prompted = [MASK, 0, MASK, MASK]
    ids = torch.tensor([empty, prompted]).repeat(N, 1)
    tokens = sample(ids=ids, energy=table_energy, num_candidates=2, max_denoising_steps=2)
    first = tokens[::2]
    second = tokens[1::2]

    tilted = resampled_law()
    assert distance(first, chain_law(tilted, 2)) < TV
    assert distance(second, chain_law(tilted, 2, start=prompted)) < TV

    # four columns of one kind, three of the other, and what they have in common: (4, 3)
    columns = torch.cat([first, second[:, [0, 2, 3]]], dim=1).double()
    correlation = np.corrcoef(columns.T.numpy())[:4, 4:]
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


WINDOW_TABLE = random_windows(seed=5)
WINDOW_ENERGY = np.random.default_rng(6).normal(size=(WINDOWS, WINDOWS)) * 1.5
# With three new tokens a model of four sees the first three texts whole, and of the others the end.
PROMPTS = [(), (1,), (MASK,), (2, 0), (0, 1, 2), (1, MASK, 0, 2)]


def window_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    real = attention_mask.bool()
    noisy = torch.where(real, noisy_ids, ABSENT).numpy()
    candidates = torch.where(real.unsqueeze(1), candidate_ids, ABSENT).numpy()
    energies = WINDOW_ENERGY[window_index(noisy)[:, None], window_index(candidates)]
    return torch.tensor(energies)


def padded_rows(prompts, side):
    """Ids and attention mask of texts with padding on the left, on the right or on both sides.

    The padding is a token like any other.
    """
    width = max(map(len, prompts)) + (side == "both")
    ids = torch.full((len(prompts), width), 2)
    attention_mask = torch.zeros(len(prompts), width, dtype=torch.long)

    for i, prompt in enumerate(prompts):
        room = width - len(prompt)
        begin = {"left": room, "right": 0, "both": room // 2}[side]
        end = begin + len(prompt)
        ids[i, begin:end] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[i, begin:end] = 1

    return ids, attention_mask


def with_new_tokens(real, new):
    """Where a finished row has its text, from the attention mask of its prompt."""
    return torch.cat([real.bool(), torch.ones(new, dtype=torch.bool)])


def check_law_of_row(tokens, real, law, count):
    """The texts (count, width) have a law, within twice the noise of so many draws."""
    texts, found = torch.unique(tokens[:, real], dim=0, return_counts=True)
    frequencies = {}
    for text, n in zip(texts.tolist(), found.tolist(), strict=True):
        frequencies[tuple(text)] = n / count

    assert abs(sum(law.values()) - 1) < 1e-9
    assert set(frequencies) <= set(law)
    differences = [abs(frequencies.get(text, 0) - p) for text, p in law.items()]
    total_variation = sum(differences) / 2
    assert total_variation < 0.6 * (len(law) / count) ** 0.5


def check_rows_of_unequal_length(side, steps, law_of_step, **options):
    """Every prompt of a padded batch has the law of `blocks_law`, in blocks of two."""
    count = 30_000
    network = EDLMForMaskedDiffusion.from_components(WindowDenoiser(WINDOW_TABLE))
    ids, attention_mask = padded_rows(PROMPTS, side)
    tokens = sample(
        network,
        ids.repeat(count, 1),
        attention_mask=attention_mask.repeat(count, 1),
        max_new_tokens=3,
        block_length=2,
        **options,
    )

    for i, prompt in enumerate(PROMPTS):
        law = blocks_law(prompt, 3, 2, steps, WINDOW_TABLE, law_of_step)
        real = with_new_tokens(attention_mask[i], 3)
        check_law_of_row(tokens[i :: len(PROMPTS)], real, law, count)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("weighed", [None, "sequence", "revealed"])
def test_rows_of_unequal_length_have_the_law_they_have_alone(side, weighed):
    """In blocks, where some fit the model and others do not."""
    options = {"max_denoising_steps": 2}
    law_of_step = plain_step
    if weighed is not None:
        law_of_step = weighed_step(WINDOW_ENERGY, weighed)
        options["energy"] = window_energy
        options["num_candidates"] = 2
        options["energy_scope"] = weighed

    check_rows_of_unequal_length(side, steps=2, law_of_step=law_of_step, **options)


def test_rows_that_reveal_one_token_at_a_time_have_the_law_they_have_alone():
    check_rows_of_unequal_length(
        "right",
        steps=None,
        law_of_step=plain_step,
        sampler="first_hitting",
    )


@pytest.mark.parametrize("options", [{"max_denoising_steps": 3}, {"sampler": "first_hitting"}])
def test_likeliest_tokens_of_a_row_do_not_depend_on_its_neighbours(options):
    network = EDLMForMaskedDiffusion.from_components(WindowDenoiser(WINDOW_TABLE))
    options = options | {"max_new_tokens": 5, "block_length": 2, "do_sample": False}
    prompts = list(itertools.product(range(MASK + 1), repeat=3))
    prompts += [(0,), (1,), (2, 1), (MASK, 0)]

    ids, attention_mask = padded_rows(prompts, "right")
    together = network.generate(ids, attention_mask=attention_mask, **options)
    for i, prompt in enumerate(prompts):
        alone = network.generate(torch.tensor([prompt]), **options)[0]
        assert torch.equal(together[i, with_new_tokens(attention_mask[i], 5)], alone)
