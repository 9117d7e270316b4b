"""Training of LoRA adapters of the energy: what changes, resumed runs and checkpoints."""

import numpy as np
import pytest
import torch
from checkpointing import CHECKPOINTING
from lora_energies import BASE, BASES, SHARED, energies, lora, scatter, trainable
from peft import PeftModel, get_peft_model
from published import tiny_denoiser
from training import arguments, logged, random_blocks

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.training import EnergyArguments, EnergyTrainer


def adapter_trainer(folder, base, dropout=0.1, seed=0, **changes) -> EnergyTrainer:
    torch.manual_seed(seed)
    denoiser = tiny_denoiser(dropout=dropout)
    model = EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce", **BASES[base])
    model = get_peft_model(model, lora(lora_dropout=dropout))
    options = {
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "num_negatives": 2,
    }
    options |= {"eval_num_candidates": 4, "eval_max_denoising_steps": 4}
    args = arguments(folder, EnergyArguments, **(options | changes))
    return EnergyTrainer(
        model,
        args,
        train_dataset=random_blocks(32),
        eval_dataset=random_blocks(8, seed=1),
    )


@BASE
def test_every_part_of_an_adapter_is_trained_and_nothing_else_changes(tmp_path, base):
    trainer = adapter_trainer(tmp_path, base, save_strategy="no")
    model = trainer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    modes = set()
    model.denoiser.register_forward_pre_hook(lambda *_: modes.update(m.training for m in model.denoiser.modules()))
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(trainable(model)) and changed
    assert modes == {False} and model.energy_model.training


@SHARED
def test_checkpointed_activations_change_no_loss(tmp_path, base):
    runs = [adapter_trainer(tmp_path, base, 0.0, max_steps=4, **{CHECKPOINTING: on}) for on in (False, True)]
    for trainer in runs:
        trainer.train()
    assert all(block.gradient_checkpointing for block in runs[1].model.energy_model.blocks)
    assert logged(runs[0]) == pytest.approx(logged(runs[1]), abs=1e-6)


@pytest.mark.parametrize("base", ["own", "updated"])
def test_a_resumed_run_continues_bitwise(tmp_path, base):
    whole, resumed = adapter_trainer(tmp_path, base), adapter_trainer(tmp_path, base)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged(resumed) == logged(whole) and len(logged(whole)) == 8
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name
    for first, second in zip(whole.average.shadow, resumed.average.shadow, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("base", ["own", "updated"])
def test_checkpoints_hold_the_averaged_adapter_that_is_evaluated(tmp_path, base):
    trainer = adapter_trainer(tmp_path, base)
    plain = trainer.model.get_base_model()
    trainer.train()
    trainer.save_model(tmp_path / "final")
    measured = trainer.evaluate()
    with trainer.averaged_weights():
        average = energies(trainer.model.eval())
    assert not torch.equal(energies(trainer.model), average)

    for folder in (tmp_path / "checkpoint-8", tmp_path / "final"):
        files = {path.name for path in folder.glob("*.safetensors")}
        assert files <= {"adapter_model.safetensors", "present_weights.safetensors"}
        assert "An adapter for this model" in (folder / "README.md").read_text()

        again = adapter_trainer(tmp_path / "again", base)
        scatter(trainable(again.model).values(), seed=9)
        loaded = PeftModel.from_pretrained(again.model.unload(), folder)
        assert torch.equal(energies(loaded), average)

        again = EnergyTrainer(loaded, again.args, eval_dataset=again.eval_dataset)
        found = again.evaluate()
        for name in ("eval_loss", "eval_sampler_bound", "eval_effective_sample_size"):
            assert found[name] == pytest.approx(measured[name], abs=1e-6)

    assert plain is trainer.model.get_base_model()
    assert np.isfinite(measured["eval_sampler_bound_change"])
