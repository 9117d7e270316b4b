"""Trainers freeze what they do not train, and the next one thaws it unless the user froze it."""

import copy

import pytest
import torch
from published import tiny_denoiser
from training import denoiser_trainer, random_blocks, same, trainer_of

from edlm_hf.training import MaskedDiffusionTrainer


def test_more_training_of_the_denoiser_leaves_its_draft_heads_alone(tmp_path):
    trainer = trainer_of(
        "denoiser",
        tmp_path,
        random_blocks(16),
        model=tiny_denoiser(draft_width=2, draft_target_dim=7),
        max_steps=1,
    )
    assert isinstance(trainer, MaskedDiffusionTrainer)
    for head in (trainer.model.draft_head, trainer.model.first_draft):
        assert not any(weight.requires_grad for weight in head.parameters())
    before = copy.deepcopy(trainer.model)
    trainer.train()
    assert same(trainer.model.draft_head, before.draft_head)
    assert same(trainer.model.first_draft, before.first_draft)
    assert not same(trainer.model.backbone, before.backbone)


@pytest.mark.parametrize("kind", ["drafts", "energy"])
def test_a_later_trainer_in_the_same_process_trains_the_denoiser(tmp_path, kind):
    before = trainer_of(kind, tmp_path / "first", random_blocks(8)).model
    denoiser = before.denoiser if kind == "energy" else before
    chosen = denoiser.backbone.vocab_embed
    assert not any(weight.requires_grad for weight in denoiser.backbone.parameters())

    later = denoiser_trainer(tmp_path / "later", denoiser, max_steps=1)
    # The first one may still train
    assert not any(weight.requires_grad for weight in denoiser.backbone.parameters())
    weights = copy.deepcopy(denoiser)
    later.train()
    assert all(weight.requires_grad for weight in denoiser.backbone.parameters())
    assert not torch.equal(chosen.embedding, weights.backbone.vocab_embed.embedding)


def test_what_a_user_froze_stays_frozen_in_later_trainers(tmp_path):
    denoiser = tiny_denoiser(draft_width=2)
    denoiser.backbone.blocks[0].requires_grad_(False)
    trainer_of("drafts", tmp_path / "first", random_blocks(8), model=denoiser)
    denoiser_trainer(tmp_path / "later", denoiser, max_steps=1).train()
    of_backbone = dict(denoiser.backbone.named_parameters())
    frozen = {name for name, weight in of_backbone.items() if not weight.requires_grad}
    assert frozen == {name for name in of_backbone if name.startswith("blocks.0.")}
