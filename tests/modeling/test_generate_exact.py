"""The shipped generate() against exact laws (invariants C1, C2, C5, C12, C13, C15, C18, C19).

Each law is sampled 200,000 times. The total variation distance of so many draws over 81 sequences is about
0.6 sqrt(81 / N) / 2 = 0.006, and 0.012 is allowed.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import (
    ABSENT,
    MASK,
    SEQUENCES,
    STATES,
    WINDOWS,
    L,
    TableCausalLM,
    TableDenoiser,
    WindowDenoiser,
    blocks_law,
    chain_law,
    marginals,
    one_at_a_time_law,
    perturbed,
    plain_step,
    product_law,
    random_joint,
    random_windows,
    state_index,
    weighed_step,
    window_index,
)

from edlm_hf import EDLMForMaskedDiffusion

N, TV = 200_000, 0.012
JOINT = random_joint(seed=3)
PROPOSAL = perturbed(marginals(JOINT), seed=1)
# (256, 81) p_theta(x_0 | x_t)
PRODUCTS = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])
# E(x_0, x_t), any function
ENERGY = np.random.default_rng(8).normal(size=(len(STATES), len(SEQUENCES))) * 1.5
EMPTY = torch.full((N, L), MASK)


def table_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    """The table of energies, after a check of what an energy is given."""
    assert candidate_ids.shape[:2] == proposal_log_probs.shape
    assert attention_mask.shape == noisy_ids.shape
    visible = (noisy_ids != MASK).unsqueeze(1)
    assert torch.equal(candidate_ids * visible, noisy_ids.unsqueeze(1) * visible.expand_as(candidate_ids))
    assert (candidate_ids != MASK).all()
    state, sequence = state_index(noisy_ids.numpy()), candidate_ids.numpy() @ (3 ** np.arange(L)[::-1])
    expected = np.log(PRODUCTS[state[:, None], sequence])
    assert np.abs(proposal_log_probs.numpy() - expected).max() < 1e-9
    return torch.tensor(ENERGY[state[:, None], sequence])


def model(proposal=PROPOSAL, energy=None, **choices):
    return EDLMForMaskedDiffusion.from_components(
        TableDenoiser(proposal),
        energy,
        mask_token_id=MASK,
        **choices,
    )


def sample(network=None, ids=EMPTY, seed=0, **arguments):
    network = model() if network is None else network
    return network.generate(ids, generator=torch.Generator().manual_seed(seed), **arguments)


def frequencies(sequences):
    assert (sequences != MASK).all() and (sequences >= 0).all()
    index = sequences.numpy() @ (3 ** np.arange(L)[::-1])
    return np.bincount(index, minlength=81) / len(index)


def distance(sequences, law):
    assert abs(law.sum() - 1) < 1e-12
    return np.abs(frequencies(sequences) - law).sum() / 2


def resampled_law(k: int = 2, energies=ENERGY, temperature: float = 1.0) -> np.ndarray:
    """p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y)) at every state: (256, 81)."""
    assert k == 2
    w = np.exp(-energies / temperature)
    return np.stack(
        [2 * p * ((v[:, None] / (v[:, None] + v)) * p[None]).sum(1) for p, v in zip(PRODUCTS, w, strict=True)]
    )


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_plain_chain_has_its_enumerated_law(steps):
    assert distance(sample(max_denoising_steps=steps), chain_law(PRODUCTS, steps)) < TV


@pytest.mark.parametrize("schedule", ["cosine", "cosinesqr"])
def test_other_schedules_have_their_enumerated_law(schedule):
    network, steps = model(), 3
    network.config.noise_schedule = schedule
    cos = np.cos(np.arange(steps + 1) / steps * np.pi / 2)
    alpha = cos if schedule == "cosine" else cos**2
    alpha[-1] = 0
    law = chain_law(PRODUCTS, steps, reveal=lambda n: (alpha[n - 1] - alpha[n]) / (1 - alpha[n]))
    assert distance(sample(network, max_denoising_steps=steps), law) < TV


@pytest.mark.parametrize("steps", [1, 3])
def test_two_candidates_have_the_law_of_their_formula(steps):
    tokens = sample(energy=table_energy, num_candidates=2, max_denoising_steps=steps)
    assert distance(tokens, chain_law(resampled_law(), steps)) < TV
    assert distance(tokens, chain_law(PRODUCTS, steps)) > 4 * TV


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (0.5, {2, 3, 4}),  # T = 4, t = 1/4 ... 1; the starting time 1/2 lies on the edge and counts
        (0.49, {3, 4}),
        (0.25, {3, 4}),
        ((0.0, 0.5), {1, 2}),
        ((0.25, 0.74), {1, 2}),
        ((0.6, 0.8), {3}),
        (1.0, {1, 2, 3, 4}),
    ],
)
def test_energy_acts_in_its_window_only(window, inside):
    tilted = resampled_law()
    law = chain_law(lambda n: tilted if n in inside else PRODUCTS, 4)
    tokens = sample(energy=table_energy, num_candidates=2, max_denoising_steps=4, energy_window=window)
    assert distance(tokens, law) < TV


def test_temperature_divides_the_energy():
    tokens = sample(
        energy=table_energy,
        num_candidates=2,
        max_denoising_steps=2,
        energy_temperature=0.5,
    )
    assert distance(tokens, chain_law(resampled_law(temperature=0.5), 2)) < TV


@pytest.mark.parametrize("steps", [1, 3])
def test_autoregressive_energy_of_the_model_acts_as_its_table(steps):
    p_ar = 0.6 * JOINT + 0.4 * random_joint(seed=11)
    with np.errstate(divide="ignore"):
        energies = np.log(PRODUCTS) - np.log(p_ar)
    network = model(energy=TableCausalLM(p_ar), energy_type="ar")
    law = chain_law(resampled_law(energies=np.where(np.isfinite(energies), energies, 0)), steps)
    assert distance(sample(network, num_candidates=2, max_denoising_steps=steps), law) < TV


def test_many_candidates_approach_the_autoregressive_law():
    network = model(energy=TableCausalLM(JOINT), energy_type="ar")
    few, many = (
        distance(sample(network, num_candidates=k, max_denoising_steps=2, ids=EMPTY[:50_000]), JOINT) for k in (2, 64)
    )
    assert many < 0.018 < 0.028 < few  # 50,000 draws alone make 0.012


def test_window_zero_and_one_candidate_are_plain_diffusion_bit_by_bit():
    ids = EMPTY[:2000]
    plain = sample(ids=ids, max_denoising_steps=5)
    refuse = lambda *inputs: pytest.fail("no energy may be asked for")  # noqa: E731
    for choice in (
        {"energy_window": 0},
        {"num_candidates": 1},
        {"energy_window": 0.0, "num_candidates": 4},
    ):
        assert torch.equal(sample(ids=ids, energy=refuse, max_denoising_steps=5, **choice), plain)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_constant_energy_changes_no_law(scope):
    constant = lambda candidates, *rest: torch.full(candidates.shape[:2], 7.0)  # noqa: E731
    tokens = sample(energy=constant, num_candidates=3, max_denoising_steps=3, energy_scope=scope)
    law = chain_law(PRODUCTS, 3)
    expected = law * N
    chi_square = ((frequencies(tokens) * N - expected) ** 2 / expected).sum()
    assert chi_square < 80 + 5 * np.sqrt(160)  # 80 degrees of freedom, five standard deviations


@pytest.mark.parametrize("energy", [None, table_energy])
def test_first_hitting_is_one_position_at_a_time(energy):
    one_by_one = PRODUCTS if energy is None else resampled_law()
    tokens = sample(sampler="first_hitting", energy=energy, num_candidates=2)
    assert distance(tokens, one_at_a_time_law(one_by_one)) < TV


def test_first_hitting_uses_the_window_row_by_row():
    calls = []

    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        calls.append((noisy_ids == MASK).sum(-1))
        return table_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask)

    out = sample(
        ids=EMPTY[:20_000],
        sampler="first_hitting",
        energy=energy,
        energy_window=0.5,
        return_dict_in_generate=True,
        num_candidates=2,
    )

    # a row's hitting times are four uniforms: on average two of them are above 1/2
    assert abs(out.num_energy_calls.double().mean() - 2) < 5 / np.sqrt(20_000)
    assert sum(map(len, calls)) == out.num_energy_calls.sum()
    assert (out.num_denoiser_calls == L).all()


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


def test_permuting_candidates_changes_no_energy_and_no_law():
    p_ar = 0.6 * JOINT + 0.4 * random_joint(seed=11)
    network = model(energy=TableCausalLM(p_ar), energy_type="ar")
    noisy = torch.tensor([[MASK] * 4, [1, MASK, MASK, 0]])
    candidates = torch.where(
        noisy.unsqueeze(1) == MASK,
        torch.randint(0, 3, (2, 6, L)),
        noisy.unsqueeze(1),
    )
    permutation = torch.randperm(6)
    assert torch.equal(
        network.energy(candidates, noisy)[:, permutation], network.energy(candidates[:, permutation], noisy)
    )

    reverse = lambda *inputs: table_energy(*inputs)  # noqa: E731
    flipped = lambda c, n, p, a: reverse(c.flip(1), n, p.flip(1), a).flip(1)  # noqa: E731
    one, two = (sample(ids=EMPTY[:4000], energy=e, max_denoising_steps=2) for e in (reverse, flipped))
    assert torch.equal(one, two)


@pytest.mark.parametrize("steps", [8, 64])
def test_number_of_calls_is_the_number_of_steps_that_reveal_something(steps):
    length, rows = 32, 1024

    class Uniform(torch.nn.Module):
        rows = calls = 0

        def forward(self, input_ids, attention_mask=None):
            assert (input_ids == MASK).any(-1).all()
            self.rows += len(input_ids)
            self.calls += 1
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))

    denoiser, energies = Uniform(), []

    def energy(candidate_ids, noisy_ids, *rest):
        energies.append(len(noisy_ids))
        return torch.zeros(candidate_ids.shape[:2])

    network = EDLMForMaskedDiffusion.from_components(denoiser, mask_token_id=MASK)
    ids = torch.full((rows, length), MASK)
    out = sample(
        network, ids, energy=energy, max_denoising_steps=steps, energy_window=0.5, return_dict_in_generate=True
    )
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(out.num_denoiser_calls.double().mean() / expected - 1) < 0.01
    assert out.num_denoiser_calls.sum() == denoiser.rows and denoiser.calls <= steps
    assert out.num_energy_calls.sum() == sum(energies)

    # in the window: the steps n with n / T >= 1/2, each of which reveals something with the same probability
    in_window = (steps - steps // 2 + 1) * (1 - (1 - 1 / steps) ** length)
    assert abs(out.num_energy_calls.double().mean() / in_window - 1) < 0.02
    torch.testing.assert_close(out.tokens_per_forward, length / out.num_denoiser_calls)


# ------------------------------------------------------------------------- rows of unequal length, in blocks

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
