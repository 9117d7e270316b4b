"""The training commands, from text to a model that generates: results, saved models and errors."""

import pytest
import torch
from command_line import call, result_of
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from edlm_hf import MDLMConfig, MDLMForMaskedLM
from edlm_hf.commands import train
from edlm_hf.commands.new_models import new_energy
from edlm_hf.commands.training_flags import EnergyModelArguments
from edlm_hf.loading import load_denoiser
from edlm_hf.training import MaskedDiffusionTrainer


def test_text_to_a_model_with_an_energy_in_three_commands(tmp_path, recipe):
    denoiser = result_of(call("train-denoiser", recipe("denoiser"), "--json"))
    assert denoiser["finished"]
    assert denoiser["steps"] == 12
    assert 0 < denoiser["eval_bits_per_character"] < 5
    causal = result_of(call("train-autoregressive", recipe("autoregressive"), "--json"))
    assert 0 < causal["eval_bits_per_character"] < 5

    card = (tmp_path / "autoregressive" / "README.md").read_text()
    assert f"| bits_per_character | {causal['eval_bits_per_character']:.6g} |" in card
    assert "train.txt" in card
    file = recipe("energy", denoiser=str(tmp_path / "denoiser"), energy="lora", adapter_rank=2)
    energy = result_of(call("train-energy", file, "--max_steps", 4, "--json"))
    assert energy["steps"] == 4
    assert energy["denoiser_bytes"] == denoiser["bytes"]
    assert energy["energy_overhead"] <= 1.1
    assert energy["peak_memory_bytes"] > 0 and "eval_sampler_bound_change" in energy

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "energy")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "energy")
    assert (model.config.energy_weights, model.config.energy_adapter_rank, model.config.bos_token_id) == (
        "shared", 2, tokenizer.bos_token_id,
    )  # fmt: skip
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "autoregressive").config.causal

    start = torch.tensor([[tokenizer.bos_token_id]])
    rows = model.generate(start, max_new_tokens=15, max_denoising_steps=4, num_candidates=2)
    assert rows.shape == (1, 16) and len(tokenizer.decode(rows[0], skip_special_tokens=True)) == 15


def test_a_denoiser_starts_from_the_autoregressive_baseline(tmp_path, recipe):
    call("train-autoregressive", recipe("autoregressive", max_steps=40))
    start = {"max_steps": 1, "learning_rate": 0.0, "ema_decay": 0.0}
    new = result_of(call("train-denoiser", recipe("denoiser", **start), "--json"))
    causal = str(tmp_path / "autoregressive")
    adapted = result_of(call("train-denoiser", recipe("denoiser", **start), "--json", "--from_causal", causal,
                             "--output_dir", tmp_path / "adapted"))  # fmt: skip
    assert adapted["parameters"] == new["parameters"]
    assert adapted["eval_loss"] < new["eval_loss"] - 0.1

    both = call("train-denoiser", recipe("denoiser"), "--from_causal", causal, "--model", causal)
    assert both.exit_code == 1 and "give one of them" in both.stderr


def test_a_denoiser_goes_on_from_the_one_in_a_composite_that_ships():
    denoiser = load_denoiser("edlm-books")
    assert type(denoiser) is MDLMForMaskedLM and denoiser.config.hidden_dim == 192


def test_a_model_is_saved_before_its_evaluation_can_fail(tmp_path, recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no evaluation today")

    monkeypatch.setattr(MaskedDiffusionTrainer, "evaluate", fail)
    result = call("train-denoiser", recipe("denoiser", save_strategy="no", max_steps=2))
    assert result.exit_code == 1 and "no evaluation today" in result.stderr
    model = MDLMForMaskedLM.from_pretrained(tmp_path / "denoiser")
    assert (tmp_path / "denoiser" / "trainer_state.json").exists() and model.config.n_blocks == 2


def test_failures_are_told_in_one_line(tmp_path, recipe):
    missing = call("train-denoiser", recipe("denoiser", dataset=str(tmp_path / "nothing.txt")))
    assert missing.exit_code == 1
    assert "edlm train-denoiser: No corpus" in missing.stderr
    assert not missing.stdout


@pytest.mark.parametrize("command", train.COMMANDS)
def test_help_lists_the_flags(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "--learning_rate" in result.output
    assert "--dataset" in result.output


def test_an_energy_of_few_blocks_starts_from_the_first_ones_of_the_denoiser(tmp_path):
    torch.manual_seed(0)
    config = MDLMConfig(
        vocab_size=13,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=3,
        n_heads=2,
        model_length=12,
    )
    denoiser = MDLMForMaskedLM(config)
    denoiser.save_pretrained(tmp_path)
    model = new_energy(EnergyModelArguments(str(tmp_path), energy_blocks=1))
    assert len(model.energy_model.blocks) == 1 and len(model.denoiser.backbone.blocks) == 3

    ours, theirs = model.energy_model.blocks[0], denoiser.backbone.blocks[0]
    assert torch.equal(ours.attn_qkv.weight, theirs.attn_qkv.weight)
    for energy, count in (("full", 4), ("head", 1)):
        with pytest.raises(ValueError, match=f"energy_blocks is {count} with energy='{energy}'"):
            new_energy(EnergyModelArguments(str(tmp_path), energy=energy, energy_blocks=count))
