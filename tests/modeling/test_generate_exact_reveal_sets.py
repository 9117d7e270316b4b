"""Prompts and reveal sets have the enumerated conditional law in both scopes (C15, C18, C19)."""

import itertools

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, STATES, chain_law, distance, marginals, state_index
from exact_sampling import (
    EMPTY,
    JOINT,
    PROPOSAL,
    TV,
    N,
    model,
    resampled_law,
    sample,
    table_energy,
)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_prompts_and_infilling_have_the_conditional_law(scope):
    """Rows with different visible tokens in one batch: each has the law of its own chain (C15, C19)."""
    patterns = [[0, MASK, MASK, 2], [MASK, MASK, 1, MASK], [MASK] * 4, [2, 1, 0, MASK], [1, 1, 1, 1]]
    ids = torch.tensor(patterns).repeat(N, 1)
    steps, tilted = 3, resampled_law()
    energy = table_energy if scope == "sequence" else reveal_set_energy
    tokens = sample(
        ids=ids,
        energy=energy,
        num_candidates=2,
        max_denoising_steps=steps,
        energy_scope=scope,
    )
    assert torch.equal(tokens[ids != MASK], ids[ids != MASK])

    for row, pattern in enumerate(patterns):
        if scope == "sequence":
            law = chain_law(tilted, steps, start=pattern)
        else:
            law = reveal_set_chain(steps, pattern)
        assert distance(tokens[row :: len(patterns)], law) < TV


REVEAL_ENERGY = np.random.default_rng(4).normal(size=(len(STATES), len(STATES)))  # E_S(x_s, x_t)


def reveal_set_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    before, after = state_index(noisy_ids.numpy()), state_index(candidate_ids.numpy())
    return torch.tensor(REVEAL_ENERGY[before[:, None], after])


def reveal_set_chain(steps, start):
    """Law of the chain whose k = 2 candidates live on the reveal set alone, by enumeration."""
    law = np.zeros(len(STATES))
    law[state_index(np.array(start))] = 1
    for n in range(steps, 0, -1):
        new = np.zeros_like(law)
        for s in np.flatnonzero(law):
            masked = np.flatnonzero(STATES[s] == MASK)
            for size in range(len(masked) + 1):
                for chosen in itertools.combinations(masked, size):
                    chance = (1 / n) ** size * (1 - 1 / n) ** (len(masked) - size)
                    values = np.array(list(itertools.product(range(3), repeat=size)), dtype=int).reshape(
                        3**size,
                        size,
                    )
                    after = np.repeat(STATES[s][None], len(values), 0)
                    after[:, list(chosen)] = values
                    p = PROPOSAL[s][list(chosen), values].prod(-1) if size else np.ones(1)
                    index = state_index(after)
                    w = np.exp(-REVEAL_ENERGY[s, index])
                    p2 = 2 * p * ((w[:, None] / (w[:, None] + w)) * p).sum(1) if size else p
                    np.add.at(new, index, law[s] * chance * p2)

        law = new

    return law[state_index(SEQUENCES)]


def test_reveal_set_of_everything_is_the_sequence_scope_bit_by_bit():
    """One step reveals all masks (S = M): both scopes are the paper's EDLM (C18)."""
    ids = EMPTY[:5000]
    one, two = (
        sample(ids=ids, energy=table_energy, num_candidates=4, max_denoising_steps=1, energy_scope=scope)
        for scope in ("sequence", "revealed")
    )
    assert torch.equal(one, two)


def test_single_revealed_position_needs_no_energy_where_marginals_are_exact():
    """The optimal reveal-set energy of one position is constant when the proposal's marginals are exact (C18)."""
    network = model(marginals(JOINT))

    def optimal(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        out = []
        for noisy, candidates, log_p in zip(noisy_ids, candidate_ids, proposal_log_probs, strict=True):
            state = noisy.numpy()
            given = JOINT[((state == MASK) | (SEQUENCES == state)).all(-1)].sum()
            fits = [((c == MASK) | (SEQUENCES == c)).all(-1) for c in candidates.numpy()]
            out.append(-torch.tensor([np.log(JOINT[f].sum() / given) for f in fits]) + log_p)
        return torch.stack(out)

    out = sample(
        network,
        ids=EMPTY[:200],
        energy=optimal,
        sampler="first_hitting",
        energy_scope="revealed",
        num_candidates=5,
        return_dict_in_generate=True,
    )
    assert (out.effective_sample_size - 5).abs().max() < 1e-9
    assert out.energies.abs().max() < 1e-9
