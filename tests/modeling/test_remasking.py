"""ReMDM, the Gibbs corrector and editing through the shipped generate(), against enumerated laws (S7)."""

import numpy as np
import pytest
import torch
from exact import (
    MASK,
    SEQUENCES,
    STATES,
    L,
    distance,
    product_law,
    state_index,
)
from exact_sampling import PROPOSAL, TV, N, model, sample
from published import tiny_denoiser
from published_samplers import gibbs_law, remdm_chain_law, remdm_loop_alpha, remdm_sigma

from edlm_hf.evaluation import sampler_bound

STEPS = 5


def remdm_law(kind, eta, window, start=(MASK,) * L, given=()):
    """The law over texts and alphas, sigmas of its steps, from the second writing."""
    low, high = window
    times = [1 - n / STEPS for n in range(STEPS + 1)]
    if kind == "loop":
        alphas = [remdm_loop_alpha(t, high, low, 0.6) for t in times]
    else:
        alphas = [1 - t for t in times]

    alphas[-1] = 1.0
    sigmas = []
    for n in range(STEPS):
        sigma = remdm_sigma(kind, alphas[n + 1], alphas[n], eta, times[n], high, low)
        sigmas.append(sigma if low < times[n] <= high and alphas[n] > 0 else 0.0)

    return remdm_chain_law(PROPOSAL, alphas, sigmas, start, given)[-1][state_index(SEQUENCES)]


CASES = [
    ("cap", 0.3, (0.0, 1.0)),
    ("rescale", 0.5, (0.0, 1.0)),
    ("rescale", 1.0, (0.0, 1.0)),
    ("rescale", 1.0, (0.3, 0.7)),
    ("cap", 0.9, (0.1, 0.5)),
    ("loop", 0.3, (0.15, 0.85)),
]


@pytest.mark.parametrize(("kind", "eta", "window"), CASES)
def test_remdm_has_its_enumerated_law(kind, eta, window):
    options = {"sampler": "remdm", "remasking": kind, "eta": eta, "remasking_window": window}
    options |= {"loop_alpha": 0.6, "max_denoising_steps": STEPS}
    assert distance(sample(**options), remdm_law(kind, eta, window)) < TV

    start = (MASK, 1, MASK, MASK)
    tokens = sample(ids=torch.tensor([start]).repeat(N, 1), **options)
    assert (tokens[:, 1] == 1).all()
    assert distance(tokens, remdm_law(kind, eta, window, start, given=(1,))) < TV


@pytest.mark.parametrize("remasking", ["cap", "rescale"])
def test_remdm_without_remasking_is_ancestral_bit_by_bit(remasking):
    ids = torch.full((500, L), MASK)
    for steps in (1, 3, 7, 100):
        ancestral = sample(ids=ids, max_denoising_steps=steps)
        remdm = sample(ids=ids, sampler="remdm", remasking=remasking, eta=0.0, max_denoising_steps=steps)
        assert torch.equal(remdm, ancestral)


def test_remdm_keeps_the_bound_valid_and_loose():
    texts = torch.tensor(SEQUENCES)
    options = {"num_steps": STEPS, "num_samples": 8, "batch_size": 4096}
    plain = sampler_bound(model(), texts, sampler="remdm", eta=0.0, **options)
    again = sampler_bound(model(), texts, sampler="remdm", eta=0.5, **options)
    assert again.value > plain.value
    law = remdm_law("cap", 0.5, (0.0, 1.0))
    assert again.value * L > -np.log(law).mean()


@pytest.mark.parametrize("sweeps", [0.5, 1, 3])
def test_the_corrector_has_its_enumerated_law(sweeps):
    """One position at a time, after the deterministic planner that fills the masks."""
    products = np.stack([product_law(PROPOSAL, s) for s in range(len(STATES))])
    base = {"sampler": "dilated", "offset": 0, "max_denoising_steps": 2}
    found = sampler_bound(model(), torch.tensor(SEQUENCES), num_steps=2, sampler="dilated", offset=0)
    law = np.zeros(len(STATES))
    law[state_index(SEQUENCES)] = np.exp(-np.array(found.sequence_nats))
    for _ in range(int(np.ceil(sweeps * L))):
        law = law @ gibbs_law(products, 1)
    tokens = sample(corrector_sweeps=sweeps, **base)
    assert distance(tokens, law[state_index(SEQUENCES)]) < TV


def test_a_corrector_keeps_prompts_and_takes_the_steps_of_every_row():
    ids = torch.tensor([[MASK] * 4, [0, 1, 2, MASK], [2, 2, 2, 2]])
    options = {"corrector_sweeps": 2.0, "max_denoising_steps": 3, "return_dict_in_generate": True}
    for sampler in ("dilated", "spaced", "low_confidence", "edit", "entropy_bound", "first_hitting", "remdm"):
        out = sample(ids=ids, sampler=sampler, **options)
        plain = sample(ids=ids, sampler=sampler, max_denoising_steps=3, return_dict_in_generate=True)
        assert torch.equal(out.sequences[1, :3], ids[1, :3])
        assert torch.equal(out.sequences[2], ids[2])
        assert (out.sequences != MASK).all()
        if sampler == "dilated":
            assert (out.num_denoiser_calls - plain.num_denoiser_calls).tolist() == [8, 2, 0]


def test_a_corrected_planner_is_not_exact():
    found = sampler_bound(
        model(), torch.tensor(SEQUENCES), num_steps=2, sampler="spaced", corrector_sweeps=1.0, num_samples=16
    )
    assert found.standard_error > 0


def test_the_corrector_counts_the_log_probabilities_of_the_last_draw():
    ids = torch.full((50, L), MASK)
    options = {"corrector_sweeps": 5.0, "output_log_probs": True, "output_history": True}
    for sampler in ("spaced", "edit", "low_confidence"):
        out = sample(
            ids=ids,
            sampler=sampler,
            max_denoising_steps=4,
            return_dict_in_generate=True,
            **options,
        )
        assert out.log_probs.isfinite().all() and (out.log_probs <= 0).all()


@pytest.mark.parametrize("sampler", ["top_k", "low_confidence"])
@pytest.mark.parametrize("num_steps", [2, 4, 5, 8])
def test_a_corrector_goes_on_with_the_numbers_of_the_steps_before(sampler, num_steps):
    """The counts of Dream leave steps out, which count all the same."""
    numbers = []
    options = {
        "sampler": sampler,
        "reveal_counts": "dream",
        "max_denoising_steps": num_steps,
        "corrector_sweeps": 1.0,
    }
    network = tiny_denoiser()
    masks = torch.full((2, 4), network.config.mask_token_id)
    output = network.generate(
        masks,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda model, number, t, values: numbers.append(number),
        output_history=True,
        return_dict_in_generate=True,
        **options,
    )

    # One sweep of one position each is as many steps as there are positions
    assert numbers == sorted(set(numbers)) and numbers[-4:] == list(range(num_steps, num_steps + 4))
    assert len(output.history) == 1 + network.count_steps(masks, **options) == num_steps + 5
