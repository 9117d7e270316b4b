"""Without sampling the likeliest tokens are revealed, the most confident ones first."""

from types import SimpleNamespace

import pytest
import torch
from composites import MASK, build
from published import tiny_denoiser, with_ar


def test_likeliest_tokens_are_revealed_in_the_order_of_confidence():
    class Confident(torch.nn.Module):
        """Position i is sure of token i with the given strength. Visible tokens change nothing."""

        def forward(self, input_ids, attention_mask=None):
            strength = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.5, 4.0])[: input_ids.shape[1]]
            logits = torch.nn.functional.one_hot(torch.arange(input_ids.shape[1]), 13) * strength[:, None]
            return SimpleNamespace(logits=logits.expand(len(input_ids), -1, -1))

    model = build(Confident(), mask_token_id=MASK)
    ids = torch.full((1, 6), MASK)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    options = {"do_sample": False, "output_history": True, "return_dict_in_generate": True}
    out = model.generate(ids, max_denoising_steps=4, **options)
    assert torch.equal(torch.random.get_rng_state(), state)  # no random number

    shown = [(h[0] != MASK).nonzero().squeeze(-1).tolist() for h in out.history]
    # 6 masks, r = 1/4, 1/3, 1/2, 1: round(1.5) = 2, round(4/3) = 1, round(3/2) = 2, the rest; ties by index
    assert shown == [[], [1, 5], [1, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert out.sequences[0].tolist() == [0, 1, 2, 3, 4, 5] and out.num_energy_calls.sum() == 0

    one_by_one = model.generate(ids, sampler="first_hitting", **options)
    order = [(h[0] != MASK).sum().item() for h in one_by_one.history]
    assert order == [0, 1, 2, 3, 4, 5, 6] and one_by_one.history[1][0, 5] == 5


@pytest.mark.parametrize("option", [{"temperature": 0.05}, {"top_k": 1}, {"top_p": 0.3}])
def test_options_of_sampling_change_nothing_without_it(option):
    """As in transformers. Temperature and filters would change which position is the most confident."""
    ids, model = torch.full((1, 8), MASK), tiny_denoiser()
    options = {
        "do_sample": False,
        "max_denoising_steps": 4,
        "output_history": True,
        "return_dict_in_generate": True,
    }
    plain, changed = model.generate(ids, **options), model.generate(ids, **options, **option)
    assert all(torch.equal(x, y) for x, y in zip(plain.history, changed.history, strict=True))


def test_steps_that_reveal_nothing_cost_nothing_without_sampling_too():
    out = tiny_denoiser().generate(
        max_length=3,
        do_sample=False,
        max_denoising_steps=50,
        return_dict_in_generate=True,
    )
    assert out.num_denoiser_calls.tolist() == [3] and (out.sequences != MASK).all()


def test_likeliest_tokens_ask_no_energy():
    refuse = lambda *inputs: pytest.fail("candidates coincide: no energy is needed")  # noqa: E731
    one = tiny_denoiser().generate(batch_size=2, do_sample=False, energy=refuse, max_denoising_steps=4)
    assert torch.equal(one[0], one[1])


@pytest.mark.parametrize("sampler", ["edit", "low_confidence", "spaced", "ancestral"])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_without_sampling_an_energy_changes_nothing(sampler, threshold):
    options = {"max_length": 8, "do_sample": False, "sampler": sampler, "max_denoising_steps": 6}
    if sampler == "edit":
        options |= {"threshold": threshold, "editing_threshold": 0.1}
    alone = build(tiny_denoiser()).generate(**options)
    assert torch.equal(with_ar().generate(**options), alone)
