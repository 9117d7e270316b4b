"""Energies of a model inside `generate()`: records, the shared prefix, chunks and precision."""

import copy

import pytest
import torch
from composites import MASK, build
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2, with_ar

from edlm_hf import EDLMEnergyModel
from edlm_hf.modeling.energies import Candidates


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ar", "coar", "nce", "shared"])
def test_recorded_energies_are_those_of_the_model(kind):
    if kind == "nce":
        model = build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config())))
    elif kind == "shared":
        model = build(tiny_denoiser(), energy_type="nce", energy_weights="shared")
        randomised(model.energy_model, seed=3)
    else:
        model = with_ar(energy_type=kind)

    inner, checked = model.own_energy("sequence"), []
    bare = copy.deepcopy(model)

    def watched(candidates, proposal):
        energies = inner(candidates, proposal)
        torch.testing.assert_close(
            energies,
            bare.energy(candidates.ids, proposal.ids),
            rtol=0,
            atol=1e-4,
        )
        checked.append(energies)
        return energies

    model.own_energy = lambda scope, chunk_size: watched
    prompt = torch.tensor([[1, 2, MASK, 4], [MASK, MASK, 3, 3]])
    out = model.generate(
        prompt,
        max_new_tokens=3,
        max_denoising_steps=3,
        num_candidates=4,
        generator=seed(),
        return_dict_in_generate=True,
    )
    assert checked and out.energies.shape == (3, 2, 4) and out.effective_sample_size.shape == (3, 2)

    recorded = out.energies[~out.energies.isnan().any(-1)]
    torch.testing.assert_close(recorded, torch.cat(checked))
    sizes = out.effective_sample_size[~out.effective_sample_size.isnan()]
    assert ((sizes >= 1 - 1e-6) & (sizes <= 4 + 1e-6)).all()
    assert torch.equal((~out.effective_sample_size.isnan()).sum(0), out.num_energy_calls)


@torch.no_grad()
@pytest.mark.parametrize("causal", [lambda: tiny_causal(bos_token_id=10, model_length=40), lambda: long_gpt2()])
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_shared_prefix_and_chunks_change_no_energy(causal, energy_type):
    model = build(tiny_denoiser(model_length=40), causal(), energy_type=energy_type)
    generator = seed(5)
    noisy = torch.randint(0, 10, (3, 36), generator=generator)
    noisy[0, 20:], noisy[1, 25::2], noisy[2, 30:] = MASK, MASK, MASK
    draws = torch.randint(0, 12, (3, 5, 36), generator=generator)
    candidates = torch.where(noisy.unsqueeze(1) == MASK, draws, noisy.unsqueeze(1))
    proposal = model.propose(noisy, noisy == MASK)
    proposed = Candidates(candidates, proposal.log_probs(candidates))
    whole = torch.stack([model.energy(candidates[:, j : j + 1], noisy)[:, 0] for j in range(5)], 1)
    fed = []
    model.energy_model.register_forward_pre_hook(
        lambda m, a, k: fed.append(k["input_ids"].shape),
        with_kwargs=True,
    )
    getattr(model.energy_model, "backbone", torch.nn.Identity()).register_forward_pre_hook(
        lambda m, a, k: fed.append(k["input_ids"].shape), with_kwargs=True
    )

    for chunk in (None, 1, 4, 7):
        fed.clear()
        energies = model.own_energy("sequence", chunk)(proposed, proposal)
        torch.testing.assert_close(energies, whole, rtol=0, atol=1e-4)
        # What every row shows before its first mask runs once per row, not per candidate
        assert fed[0] == (3, 20)
        assert sum(n for n, _ in fed[1:]) == 15 and all(n <= (chunk or 15) for n, _ in fed[1:])


def long_gpt2():
    return tiny_gpt2(n_positions=40, bos_token_id=10)


def test_energies_stay_single_precision_in_a_half_precision_model():
    model = with_ar().to(torch.bfloat16)
    out = model.generate(
        batch_size=2, max_denoising_steps=3, num_candidates=3, generator=seed(), return_dict_in_generate=True
    )
    assert out.energies.dtype == torch.float32 and (out.sequences != MASK).all()


def test_an_energy_does_not_go_with_a_sampler_that_looks_at_visible_tokens():
    class Looking:
        sees = "tokens"

        def steps(self, state, noise):
            from edlm_hf.modeling.samplers import Step

            for _ in range(8):
                yield Step(state.time_of(state.masked.sum(-1).cpu(), state.free.sum(-1).cpu()))

        def looks_at(self, state, rows):
            return state.free[rows]

        def reveal(self, step, proposal):
            return proposal.masked & (proposal.masked.cumsum(-1) == 1)

    with pytest.raises(ValueError, match="looks at visible tokens"):
        with_ar().generate(max_length=8, sampler=Looking(), generator=seed())
    assert not (with_ar().generate(max_length=8, sampler=Looking(), num_candidates=1, generator=seed()) == MASK).any()
