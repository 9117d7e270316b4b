"""The pairs that energies are trained on: rows together as rows alone, in either scope, by the steps of a sampler."""

import math

import numpy as np
import pytest
import torch
from energy_training import energy_trainer
from published import randomised, tiny_config, tiny_denoiser
from training import blocks, mean_and_error, random_blocks

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.evaluation import sampler_bound
from edlm_hf.evaluation.noising import RowNoise
from edlm_hf.modeling.masked_diffusion import make_schedule
from edlm_hf.modeling.sampler_choice import make_sampler
from edlm_hf.training.energy_arguments import RANDOM_ORDER
from edlm_hf.training.objectives import ranking_nce_loss
from edlm_hf.training.training_pairs import step_pairs

SCHEDULE = make_schedule("loglinear")


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "dilated", "spaced", "remdm"])
def test_steps_of_rows_together_are_the_steps_of_every_row_alone(name):
    B, L, T = 40, 24, 6
    generator = torch.Generator().manual_seed(0)
    points, seeds = torch.rand(2, B, generator=generator, dtype=torch.float64)
    points[0] = 1.0
    modelled = torch.rand(B, L, generator=generator) < torch.rand(B, 1, generator=generator)
    modelled[3] = False  # a row of context
    modelled[7] = True
    modelled[9, 2:] = False  # fewer masks than steps

    sampler = make_sampler(name, T, parameters=RANDOM_ORDER.get(name))
    t, masked, revealed = step_pairs(sampler, SCHEDULE, points, modelled, seeds)
    for i, free in enumerate(modelled):
        noise = RowNoise([np.random.default_rng(int(seeds[i] * 2**53))])
        (alone,) = sampler.jumps(free[None], [min(float(points[i]), 1 - 1e-9)], noise, SCHEDULE)
        assert float(t[i]) == alone.t
        assert torch.equal(masked[i], alone.masked) and torch.equal(revealed[i], alone.revealed)

    assert not masked[3].any() and float(t[3]) == 0 and revealed.any(-1).sum() > 10


def test_rows_without_a_token_that_counts_have_no_masks():
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    uniforms = torch.full((2,), 0.5, dtype=torch.float64)
    for name in ("ancestral", "dilated"):
        pairs = step_pairs(make_sampler(name, 4), SCHEDULE, uniforms, nothing, uniforms)
        assert not pairs.masked.any() and not pairs.from_text.any()


class Watched(EDLMEnergyModel):
    def forward(self, candidate_ids, noisy_ids, **kwargs):
        self.seen.append((candidate_ids, noisy_ids))
        return super().forward(candidate_ids, noisy_ids, **kwargs)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_pairs_of_either_scope(tmp_path, scope):
    energy = Watched(tiny_config(bos_token_id=11))
    energy.seen = []
    denoiser = tiny_denoiser(bos_token_id=11)
    model = EDLMForMaskedDiffusion.from_components(
        denoiser,
        energy,
        energy_type="nce",
        energy_scope=scope,
    )
    ids = np.random.default_rng(0).integers(0, 11, (16, 12))
    ids[:, 0] = 11
    trainer = energy_trainer(tmp_path, model, blocks(ids), max_steps=20, num_negatives=2)
    trainer.train()
    candidates, noisy = (torch.cat(x) for x in zip(*energy.seen, strict=True))
    positive, negative = candidates[:, 0], candidates[:, 1:]
    masked, hidden = noisy == 12, positive == 12
    assert candidates.shape == (160, 3, 12) and (noisy[:, 0] == 11).all()
    assert (candidates == noisy.unsqueeze(1))[~masked.unsqueeze(1).expand_as(candidates)].all()
    assert ((negative == 12) == hidden.unsqueeze(1)).all()

    rows = {tuple(row) for row in ids.tolist()}
    complete = [tuple(row) for row in positive[~hidden.any(-1)].tolist()]
    assert len(complete) > 10 and set(complete) <= rows

    share = (masked & ~hidden).sum() / masked.sum()
    assert share == 1 if scope == "sequence" else 0.4 < share < 0.6
    assert hidden[~masked].sum() == 0


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
@pytest.mark.parametrize("sampler", ["ancestral", "dilated", "spaced"])
def test_the_ranking_loss_of_a_step_is_the_bound_of_the_sampler(tmp_path, scope, sampler):
    """-log(k w_1) per step against the change of `sampler_bound` by the energy: 4 standard errors, 1 in 10,000."""
    T, k, copies = 3, 4, 32
    energy = randomised(EDLMEnergyModel(tiny_config()), seed=3)
    for weight in energy.energy_head.parameters():
        weight.data *= 6
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(),
        energy,
        energy_type="nce",
        energy_scope=scope,
    )
    ids = torch.tensor(np.stack(random_blocks(8)["input_ids"])).long()
    trainer = energy_trainer(
        tmp_path, model, num_negatives=k - 1, nce_loss="ranking", max_denoising_steps=T, sampler=sampler
    )
    many, losses, changes = ids.repeat(copies, 1), [], []
    shapes = (len(many),), many.shape, (len(many),), (*many.shape, k if scope == "sequence" else k - 1)

    for seed in range(16):
        noise = torch.Generator().manual_seed(seed)
        uniforms = [torch.rand(shape, generator=noise) for shape in shapes]
        with torch.no_grad():
            found = trainer.energies(trainer.model, {"input_ids": many, "labels": many}, *uniforms)
        losses.append(float(ranking_nce_loss(*found).mean()) - math.log(k))
        options = {
            "num_steps": T,
            "num_samples": copies,
            "seed": seed,
            "batch_size": 64,
            "energy_scope": scope,
        }
        options |= {"sampler": sampler, **({"score": "random"} if sampler == "spaced" else {})}
        ours = sampler_bound(model, ids, num_candidates=k, **options).sequence_nats
        theirs = sampler_bound(model, ids, num_candidates=1, **options).sequence_nats
        changes.append(float(np.mean(np.subtract(ours, theirs))) / T)

    (loss, error), (change, spread) = mean_and_error(losses), mean_and_error(changes)
    assert abs(loss - change) < 4 * math.hypot(error, spread)
    assert change > 5 * math.hypot(error, spread)  # else any loss would do


def test_pairs_are_those_of_samplers_that_see_masks_alone(tmp_path):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), energy_type="nce")
    with pytest.raises(ValueError, match="top_k.*looks at the proposal.*dilated"):
        energy_trainer(tmp_path, model, sampler="top_k", max_denoising_steps=4)
    with pytest.raises(ValueError, match="sampler is 'dilated'.*Pass the T"):
        energy_trainer(tmp_path, model, sampler="dilated")
    with pytest.raises(ValueError, match="must be one of ancestral"):
        energy_trainer(tmp_path, model, sampler="dilatet", max_denoising_steps=4)
