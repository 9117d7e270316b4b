"""Muon and AdamW as one optimiser of the trainers."""

import copy

import pytest
import torch
from published import tiny_denoiser
from training import denoiser_trainer, logged, random_blocks, same
from transformers import BertConfig, BertModel

from edlm_hf.training.optimizers import Muon, MuonAdamW

OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


def with_gradients(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_linear_layers_of_the_blocks_take_orthonormal_steps_and_all_else_those_of_adamw():
    model, reference = with_gradients(tiny_denoiser()), with_gradients(tiny_denoiser())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    MuonAdamW(model, **(OPTIONS | {"weight_decay": 0.0})).step()
    torch.optim.AdamW(reference.parameters(), **(OPTIONS | {"weight_decay": 0.0})).step()
    kinds = {True: 0, False: 0}

    for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        matrix = name.startswith("backbone.blocks.") and parameter.dim() == 2 and "adaLN" not in name
        kinds[matrix] += 1
        if matrix:
            singular = torch.linalg.svdvals(parameter.detach() - before[name]) / OPTIONS["lr"]
            # The root mean square of AdamW's step is near 0.2
            scale = 0.2 * max(parameter.shape) ** 0.5
            assert 0.5 * scale < singular.min() and singular.max() < 1.4 * scale, name
        else:
            assert torch.equal(parameter, expected), name

    assert min(kinds.values()) > 4


def test_a_restored_state_goes_on_bitwise_with_its_learning_rate():
    model, again = tiny_denoiser(), tiny_denoiser()
    optimizer = MuonAdamW(with_gradients(model), **OPTIONS)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    again.load_state_dict(model.state_dict())
    restored = MuonAdamW(with_gradients(again), **OPTIONS)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, restored):
        one.step()
    schedule.step()
    assert same(model, again)
    assert [group["lr"] for group in restored.param_groups] == [0.005, 0.005]


def test_the_trainer_resumes_bitwise_under_muon(tmp_path):
    options = {
        "muon": True,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 5e-3,
    }
    whole = denoiser_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = denoiser_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert isinstance(whole.optimizer.optimizer, MuonAdamW)
    assert same(whole.model, resumed.model) and logged(whole)[3:] == logged(resumed)[3:]


def test_muon_learns(tmp_path):
    """Which two of twelve tokens there are: log 2 = 0.69 nats are left of 2.3."""
    rows = random_blocks(8, vocabulary=2)
    options = {"max_steps": 60, "learning_rate": 1e-2, "ema_decay": 0, "eval_num_samples": 16}
    trainer = denoiser_trainer(tmp_path, rows=rows, eval_rows=rows, muon=True, **options)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.75 < 2 < before


def test_models_without_matrices_in_named_blocks_and_sharded_matrices_are_refused(tmp_path):
    model = BertModel(
        BertConfig(
            vocab_size=10,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    model._no_split_modules = None
    with pytest.raises(ValueError, match="none are named"):
        MuonAdamW(model, **OPTIONS)
    with pytest.raises(ValueError, match="FSDP splits"):
        denoiser_trainer(tmp_path, muon=True, fsdp="full_shard")


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_torch_within_the_rounding_of_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = (
        Muon([ours], lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )

    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()

    step = theirs - start
    assert (ours - theirs).norm() < 0.02 * step.norm()
