"""The published samplers as a baseline: their enumerated distribution, and no more calls."""

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    START,
    STATES,
    L,
    TableCausalLM,
    TableDenoiser,
    chain_law,
    distance,
    marginals,
    perturbed,
    product_law,
    random_joint,
)
from published import golden, tiny_causal, write_checkpoint

from edlm_hf import MDLMForMaskedLM
from edlm_hf.benchmarks import published as baseline
from edlm_hf.benchmarks.published import (
    AutoregressiveEnergy,
    clean_probs,
    reverse_step,
    sample_published,
)

N, TV = 200_000, 0.012
JOINT = random_joint(seed=3)
P_AR = 0.6 * JOINT + 0.4 * random_joint(seed=11)
PROPOSAL = perturbed(marginals(JOINT), seed=1)

# (256, 81) p_theta(x_0 | x_t)
PRODUCTS = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])


def sample(num_steps, ids=None, **arguments):
    """N samples from the table PROPOSAL, all positions masked at first unless `ids` are given."""
    ids = torch.full((N, L), MASK) if ids is None else ids
    generator = torch.Generator().manual_seed(0)
    denoiser = TableDenoiser(PROPOSAL)
    return sample_published(denoiser, ids, MASK, num_steps, generator=generator, float64=True, **arguments)


def autoregressive_log_probs() -> np.ndarray:
    """log p_AR(x_i | x_<i) of every sequence: (L, 81)."""
    log_probs = np.zeros((L, len(SEQUENCES)))
    for i in range(L):
        for number, x in enumerate(SEQUENCES):
            before = P_AR[(SEQUENCES[:, :i] == x[:i]).all(-1)].sum()
            with_next = P_AR[(SEQUENCES[:, : i + 1] == x[: i + 1]).all(-1)].sum()
            log_probs[i, number] = np.log(with_next / before)
    return log_probs


def two_candidate_law(carry_over: bool) -> np.ndarray:
    """p_2(x) = sum_y 2 p(x) p(y) w(x) / (w(x) + w(y)) at every state, w = exp(-E): (256, 81)."""
    log_probs = autoregressive_log_probs()
    law = np.zeros_like(PRODUCTS)
    for s, p in enumerate(PRODUCTS):
        counted = (STATES[s] == MASK) if carry_over else np.ones(L, dtype=bool)
        w = np.divide(np.exp(log_probs[counted].sum(0)), p, out=np.ones_like(p), where=p > 0)
        chosen = w[:, None] / (w[:, None] + w)
        law[s] = 2 * p * (chosen * p).sum(1)
    return law


def test_published_mdlm_has_its_enumerated_law():
    tokens, denoiser_calls, energy_calls = sample(3)
    assert distance(tokens, chain_law(PRODUCTS, 3)) < TV
    assert (denoiser_calls, energy_calls) == (3, 0)


@pytest.mark.parametrize("carry_over", [False, True])
def test_published_edlm_has_its_enumerated_law(carry_over):
    energy = AutoregressiveEnergy(TableCausalLM(P_AR), 4, MASK, START, carry_over)
    tokens, denoiser_calls, energy_calls = sample(2, energy=energy, num_candidates=2)
    assert (denoiser_calls, energy_calls) == (2, 2)

    # The two energies are 0.012 apart
    own = chain_law(two_candidate_law(carry_over), 2)
    other = chain_law(two_candidate_law(not carry_over), 2)
    assert distance(tokens, own) < min(TV, distance(tokens, other))
    assert distance(tokens, chain_law(PRODUCTS, 2)) > 4 * TV


def test_published_energy_acts_in_its_window_and_keeps_visible_tokens():
    energy = AutoregressiveEnergy(TableCausalLM(P_AR), 4, MASK, START)
    start = [MASK, 0, MASK, MASK]
    ids = torch.tensor([start]).repeat(N, 1)
    tokens, _, energy_calls = sample(4, ids, energy=energy, num_candidates=2, energy_window=0.5)
    assert energy_calls == 3  # t = 1, 3/4, 1/2

    tilted = two_candidate_law(carry_over=False)
    law = chain_law(lambda n: tilted if n >= 2 else PRODUCTS, 4, start=start)
    assert distance(tokens, law) < TV


def prefer_one(candidates, x, proposal):
    """An energy that makes token 1 at position 1 e^5 times likelier: (k, B, L) -> (k, B)."""
    return 5.0 * (candidates[..., 1] != 1).double()


def official_calls(states: list[torch.Tensor], energy_window: float) -> tuple[int, int]:
    """Calls of denoiser and energy of the official loop that goes through these T + 1 states."""
    num_steps = len(states) - 1
    denoiser_calls = 0
    energy_calls = 0
    has_cache = False
    for i in range(num_steps):
        t = 1 - i / num_steps
        if not has_cache:
            denoiser_calls += 1
            energy_calls += t >= 1 - energy_window
        has_cache = torch.equal(states[i + 1], states[i])

    return denoiser_calls, energy_calls


@pytest.mark.parametrize("energy_window", [0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calls_are_those_of_the_official_loop(energy_window, seed, monkeypatch):
    states = [torch.full((2, L), MASK)]

    def recorded(*arguments):
        states.append(reverse_step(*arguments))
        return states[-1]

    monkeypatch.setattr(baseline, "reverse_step", recorded)
    denoiser = TableDenoiser(PROPOSAL)
    options = {"energy": prefer_one, "num_candidates": 2, "energy_window": energy_window}
    generator = torch.Generator().manual_seed(seed)
    result = sample_published(denoiser, states[0], MASK, 32, generator=generator, **options)

    assert len(states) == 33
    assert (result.denoiser_calls, result.energy_calls) == official_calls(states, energy_window)
    assert result.denoiser_calls == denoiser.calls <= 2 * L + 1
    assert 0 < result.energy_calls <= result.denoiser_calls


def test_a_kept_candidate_changes_no_distribution():
    """Rows alone, of one masked position: most of their steps change nothing."""
    num_rows, num_steps = 3000, 8
    start = torch.tensor([[1, MASK, 0, 2]])
    generator = torch.Generator().manual_seed(0)
    options = {"energy": prefer_one, "num_candidates": 2, "energy_window": 0.25, "float64": True}
    denoiser = TableDenoiser(PROPOSAL)
    counts = np.zeros(3)
    for _ in range(num_rows):
        result = sample_published(denoiser, start, MASK, num_steps, generator=generator, **options)
        counts[result.sequences[0, 1]] += 1

    assert denoiser.calls < 2 * num_rows  # before and after the token is there

    # p_2 of two candidates, in the 3 of 8 steps that start at t >= 3/4
    state = (STATES == start.numpy()).all(-1).argmax()
    p = PROPOSAL[state, 1]
    w = np.exp([-5.0, 0.0, -5.0])
    p_2 = 2 * p * ((w[:, None] / (w[:, None] + w)) * p).sum(1)
    law = (3 * p_2 + 5 * p) / 8

    noise = 0.6 * np.sqrt(3 / num_rows)
    assert np.abs(counts / num_rows - law).sum() / 2 < 2 * noise
    assert np.abs(p_2 - law).sum() / 2 > 4 * noise  # a candidate that is kept after the window


def test_the_published_energy_builds_no_cache():
    causal_lm = tiny_causal()
    caches = []
    causal_lm.backbone.register_forward_hook(lambda module, inputs, output: caches.append(output.past_key_values))
    energy = AutoregressiveEnergy(causal_lm, vocab_size=12, mask_token_id=11, start_token_id=12)
    with torch.no_grad():
        energy(torch.randint(0, 11, (2, 3, 8)), torch.full((3, 8), 11), torch.zeros(2, 3))
    assert caches == [None]


def test_network_output_is_reused_while_nothing_changes():
    denoiser = TableDenoiser(PROPOSAL)
    ids = torch.full((1, L), MASK)
    generator = torch.Generator().manual_seed(0)
    result = sample_published(denoiser, ids, MASK, 64, generator=generator)
    assert result.denoiser_calls == denoiser.calls <= L + 1


def test_one_step_equals_the_recorded_one(tmp_path, monkeypatch):
    """Given the uniforms of golden (f), the draws are those of the published code, in float32."""
    step = golden("f_step")
    model = MDLMForMaskedLM.from_pretrained(write_checkpoint(tmp_path / "dit", "model_dit")).eval()
    mask = model.config.mask_token_id
    with torch.no_grad():
        p_x0 = clean_probs(model, step["xt"], mask, torch.float32)
    torch.testing.assert_close(p_x0, step["p_x0"], atol=1e-5, rtol=0)

    for row, t in enumerate(step["t"].tolist()):
        only = slice(row, row + 1)
        monkeypatch.setattr(torch, "rand", lambda *shape, only=only, **_: step["uniform"][only])
        s = t - step["dt"].item()
        x_s = reverse_step(step["p_x0"][only], step["xt"][only], t, s, mask, None)
        assert torch.equal(x_s, step["x_next_cache"][only])
