"""Which steps reveal what: equal to the definition step by step, and no slower for a large T."""

import math

import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_denoiser

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.chain_state import State
from edlm_hf.modeling.masked_diffusion import make_schedule, reveal_probability
from edlm_hf.modeling.noise import Noise
from edlm_hf.modeling.planners import MostConfident
from edlm_hf.modeling.samplers import Ancestral, FirstHitting, reveal_times

SCHEDULES = [
    make_schedule("loglinear"),
    make_schedule("cosine"),
    make_schedule("cosinesqr"),
    make_schedule("linear", sigma_max=5.0),  # leaves a share of .007 for the first step
    make_schedule("geometric", sigma_max=6.0),
]
FREE = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
    ]
).bool()


def steps_of(sampler, free, schedule, seed_of_noise=0):
    """The steps of a sampler, each of which reveals the first so many masks where it does not say which."""
    state = State(torch.full(free.shape, 9), free, torch.ones_like(free), 9, schedule)
    for number, step in enumerate(sampler.steps(state, Noise(seed(seed_of_noise)))):
        step = step.complete(number, state)
        revealed = step.reveal
        if revealed is None:
            revealed = state.masked & (state.masked.cumsum(-1) <= step.counts.unsqueeze(1))
        state.write(torch.arange(len(free)), revealed, torch.zeros_like(state.ids))
        yield step


@pytest.mark.parametrize("name", ["loglinear", "cosine", "cosinesqr", "linear"])
def test_reveal_times_give_the_reveal_probability_of_every_step(name):
    schedule, noise = make_schedule(name), Noise(seed(2))
    masked = torch.ones(200_000, 1, dtype=torch.bool)
    times = reveal_times(masked, noise)
    grid = torch.tensor([0.8, 0.55], dtype=torch.float64)
    share_t, share_s = 1 - schedule.alpha(grid)
    still = times < share_t
    revealed = still & (times >= share_s)
    expected = reveal_probability(*schedule.alpha(grid).flip(0))

    assert abs(revealed.sum() / still.sum() - expected) < 4.5 * math.sqrt(0.25 / still.sum())
    assert (reveal_times(~masked, noise) == -1).all()
    torch.testing.assert_close(schedule.time(1 - schedule.alpha(grid)), grid)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 1000])
def test_ancestral_steps_are_those_of_the_definition(schedule, T):
    grid = torch.arange(T + 1, dtype=torch.float64) / T
    masked = 1 - schedule.alpha(grid)
    times = reveal_times(FREE, Noise(seed(3)))
    steps = {T - step.index: step for step in steps_of(Ancestral(T), FREE, schedule, 3)}
    assert list(steps) == sorted(steps, reverse=True)

    for n in range(T, 0, -1):
        # u lies between 1 - alpha_s and 1 - alpha_t
        revealed = FREE & (masked[n - 1] <= times) & (times < masked[n])
        assert (n in steps) == bool(revealed.any())
        if n in steps:
            assert torch.equal(steps[n].reveal, revealed)
            assert torch.equal(steps[n].rows, revealed.any(-1).nonzero()[:, 0])
            assert (steps[n].t == grid[n]).all() and steps[n].t.shape == (4,)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 1000])
def test_steps_without_sampling_are_those_of_the_definition(schedule, T):
    grid = torch.arange(T + 1, dtype=torch.float64) / T
    share = reveal_probability(schedule.alpha(grid[:-1]), schedule.alpha(grid[1:]))
    steps = {T - step.index: step for step in steps_of(MostConfident(T), FREE, schedule)}
    left = FREE.sum(-1)

    for n in range(T, 0, -1):
        counts = (left * share[n - 1]).round(decimals=9).round().long()
        assert (n in steps) == bool(counts.any())
        if n in steps:
            assert torch.equal(steps[n].counts, counts) and (steps[n].t == grid[n]).all()
        left = left - counts

    assert not left.any()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [10**8, 2**53])
def test_many_steps_cost_what_the_text_is_long(schedule, T):
    steps = list(steps_of(Ancestral(T), FREE, schedule))
    assert len(steps) == FREE.sum()  # one by one
    assert torch.stack([step.reveal for step in steps]).sum(0).equal(FREE.long())
    greedy = list(steps_of(MostConfident(T), FREE, schedule))
    assert len(greedy) <= 2 * FREE.sum(-1).max()
    assert torch.stack([step.counts for step in greedy]).sum(0).equal(FREE.sum(-1))


def test_nothing_to_reveal_has_no_steps():
    for free in (torch.zeros(0, 4, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.bool), FREE[2:3]):
        for steps in (
            steps_of(Ancestral(5), free, SCHEDULES[0]),
            steps_of(FirstHitting(), free, SCHEDULES[0]),
            steps_of(MostConfident(5), free, SCHEDULES[0]),
            steps_of(MostConfident(None), free, SCHEDULES[0]),
        ):
            assert list(steps) == []


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_hundred_million_steps_take_a_moment_and_are_counted(do_sample):
    """Recorded are all steps up to a number that fits into memory. What does not is refused before it is computed."""
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    options = {
        "max_length": 5,
        "do_sample": do_sample,
        "generator": seed(),
        "return_dict_in_generate": True,
    }
    out = model.generate(max_denoising_steps=10**6, num_candidates=2, output_history=True, **options)
    assert out.num_denoiser_calls.tolist() == [5] and len(out.history) == 10**6 + 1
    assert torch.equal(out.history[-1], out.sequences) and (out.history[0] == 12).all()
    if do_sample:
        assert out.energies.shape == (10**6, 1, 2) and (~out.energies.isnan()).all(-1).sum() == 5
        assert (out.chosen >= 0).sum() == 5

    out = model.generate(max_denoising_steps=10**8, num_candidates=1, **options)
    assert out.num_denoiser_calls.tolist() == [5] and (out.sequences != 12).all()
    if do_sample:
        with pytest.raises(ValueError, match="100000000 steps with 8 numbers each.*first_hitting"):
            model.generate(max_denoising_steps=10**8, **options)
    with pytest.raises(ValueError, match="1000000000 steps with 1 numbers each"):
        model.generate(max_denoising_steps=10**9, num_candidates=1, output_history=True, **options)
    assert model.generate(max_denoising_steps=10**8, max_length=5, generator=seed()).shape == (1, 5)


def test_texts_that_are_too_long_are_refused_before_memory_is_asked_for():
    model = randomised(tiny_denoiser())
    for options, message in (
        ({"max_length": 2**50}, "new ones are more than the model's 12"),
        ({"input_ids": torch.tensor([[1]]), "max_new_tokens": 2**50}, "new ones are more than the model's 12"),
        ({"max_new_tokens": 2**50, "block_length": 2}, "at most 67108864 tokens"),
        ({"batch_size": 2**50}, "at most 67108864 tokens"),
        ({"batch_size": 2**50, "max_new_tokens": 0}, "at most 67108864 tokens"),
        ({"input_ids": torch.tensor([[1, 12]]), "num_return_sequences": 2**50}, "at most 67108864 tokens"),
        ({"energy": lambda *inputs: None, "num_candidates": 2**50}, "candidates count as rows"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**options)
