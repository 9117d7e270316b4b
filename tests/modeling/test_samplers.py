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
    """Yield the steps of a sampler and write what each of them reveals.

    A step that gives numbers alone reveals the first masks of a row.
    """
    state = State(torch.full(free.shape, 9), free, torch.ones_like(free), 9, schedule)
    rows = torch.arange(len(free))
    zeros = torch.zeros_like(state.ids)
    for number, step in enumerate(sampler.steps(state, Noise(seed(seed_of_noise)))):
        step = step.complete(number, state)
        revealed = step.reveal
        if revealed is None:
            rank = state.masked.cumsum(-1)
            revealed = state.masked & (rank <= step.counts.unsqueeze(1))

        state.write(rows, revealed, zeros)
        yield step


def by_number(steps, T):
    """Steps by their number n, from T down to 1."""
    numbered = {T - step.index: step for step in steps}
    assert list(numbered) == sorted(numbered, reverse=True)
    return numbered


@pytest.mark.parametrize("name", ["loglinear", "cosine", "cosinesqr", "linear"])
def test_reveal_times_give_the_reveal_probability_of_every_step(name):
    schedule = make_schedule(name)
    noise = Noise(seed(2))
    masked = torch.ones(200_000, 1, dtype=torch.bool)
    times = reveal_times(masked, noise)

    # from t = .8 to s = .55
    grid = torch.tensor([0.8, 0.55], dtype=torch.float64)
    alpha_t, alpha_s = schedule.alpha(grid)
    still_masked = times < 1 - alpha_t
    revealed = still_masked & (times >= 1 - alpha_s)

    share = revealed.sum() / still_masked.sum()
    expected = reveal_probability(alpha_s, alpha_t)
    assert abs(share - expected) < 4.5 * math.sqrt(0.25 / still_masked.sum())

    assert (reveal_times(~masked, noise) == -1).all()
    torch.testing.assert_close(schedule.time(1 - schedule.alpha(grid)), grid)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 1000])
def test_ancestral_steps_are_those_of_the_definition(schedule, T):
    grid = torch.arange(T + 1, dtype=torch.float64) / T
    masked = 1 - schedule.alpha(grid)
    times = reveal_times(FREE, Noise(seed(3)))
    steps = by_number(steps_of(Ancestral(T), FREE, schedule, seed_of_noise=3), T)

    for n in range(T, 0, -1):
        # u lies between 1 - alpha_s and 1 - alpha_t
        revealed = FREE & (masked[n - 1] <= times) & (times < masked[n])
        assert (n in steps) == bool(revealed.any())
        if n in steps:
            step = steps[n]
            assert torch.equal(step.reveal, revealed)
            assert torch.equal(step.rows, revealed.any(-1).nonzero()[:, 0])
            assert step.t.shape == (4,)
            assert (step.t == grid[n]).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [1, 2, 3, 7, 64, 1000])
def test_steps_without_sampling_are_those_of_the_definition(schedule, T):
    grid = torch.arange(T + 1, dtype=torch.float64) / T
    alpha = schedule.alpha(grid)
    share = reveal_probability(alpha[:-1], alpha[1:])
    steps = by_number(steps_of(MostConfident(T), FREE, schedule), T)

    left = FREE.sum(-1)
    for n in range(T, 0, -1):
        # the expected number of reveals, rounded
        counts = (left * share[n - 1]).round(decimals=9).round().long()
        assert (n in steps) == bool(counts.any())
        if n in steps:
            assert torch.equal(steps[n].counts, counts)
            assert (steps[n].t == grid[n]).all()
        left = left - counts

    assert not left.any()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("T", [10**8, 2**53])
def test_many_steps_cost_what_the_text_is_long(schedule, T):
    steps = list(steps_of(Ancestral(T), FREE, schedule))
    revealed = torch.stack([step.reveal for step in steps])
    assert len(steps) == FREE.sum()  # one by one
    assert torch.equal(revealed.sum(0), FREE.long())

    steps = list(steps_of(MostConfident(T), FREE, schedule))
    counts = torch.stack([step.counts for step in steps])
    assert len(steps) <= 2 * FREE.sum(-1).max()
    assert torch.equal(counts.sum(0), FREE.sum(-1))


def test_nothing_to_reveal_has_no_steps():
    no_rows = torch.zeros(0, 4, dtype=torch.bool)
    no_columns = torch.zeros(2, 0, dtype=torch.bool)
    no_masks = FREE[2:3]
    for sampler in (Ancestral(5), FirstHitting(), MostConfident(5), MostConfident(None)):
        for free in (no_rows, no_columns, no_masks):
            assert list(steps_of(sampler, free, SCHEDULES[0])) == []


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_hundred_million_steps_take_a_moment_and_are_counted(do_sample):
    """All steps are recorded up to a number that fits into memory.

    More are refused before anything is computed.
    """
    causal = tiny_causal(bos_token_id=10)
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), causal)
    options = {
        "max_length": 5,
        "do_sample": do_sample,
        "generator": seed(),
        "return_dict_in_generate": True,
    }
    out = model.generate(
        max_denoising_steps=10**6,
        num_candidates=2,
        output_history=True,
        **options,
    )
    assert out.num_denoiser_calls.tolist() == [5]
    assert len(out.history) == 10**6 + 1
    assert (out.history[0] == 12).all()
    assert torch.equal(out.history[-1], out.sequences)
    if do_sample:
        assert out.energies.shape == (10**6, 1, 2)
        assert (~out.energies.isnan()).all(-1).sum() == 5
        assert (out.chosen >= 0).sum() == 5

    out = model.generate(max_denoising_steps=10**8, num_candidates=1, **options)
    assert out.num_denoiser_calls.tolist() == [5]
    assert (out.sequences != 12).all()

    if do_sample:
        message = "100000000 steps with 8 numbers each.*first_hitting"
        with pytest.raises(ValueError, match=message):
            model.generate(max_denoising_steps=10**8, **options)
    with pytest.raises(ValueError, match="1000000000 steps with 1 numbers each"):
        model.generate(
            max_denoising_steps=10**9,
            num_candidates=1,
            output_history=True,
            **options,
        )

    # without a full output nothing is recorded
    tokens = model.generate(max_denoising_steps=10**8, max_length=5, generator=seed())
    assert tokens.shape == (1, 5)


def test_texts_that_are_too_long_are_refused_before_memory_is_asked_for():
    model = randomised(tiny_denoiser())
    short = "new ones are more than the model's 12"
    many = "at most 67108864 tokens"
    prompt = torch.tensor([[1, 12]])
    for options, message in (
        ({"max_length": 2**50}, short),
        ({"input_ids": prompt[:, :1], "max_new_tokens": 2**50}, short),
        ({"max_new_tokens": 2**50, "block_length": 2}, many),
        ({"batch_size": 2**50}, many),
        ({"batch_size": 2**50, "max_new_tokens": 0}, many),
        ({"input_ids": prompt, "num_return_sequences": 2**50}, many),
        (
            {"energy": lambda *inputs: None, "num_candidates": 2**50},
            "candidates count as rows",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**options)
