"""An adapter from the command line: trained on a checkpoint that ships, generated from, pushed, loaded by others."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

import edlm_hf
from edlm_hf import MDLMConfig, MDLMForMaskedLM, loading
from edlm_hf.checkpoints import portable_name
from edlm_hf.cli import app
from edlm_hf.commands.train import train_energy
from edlm_hf.commands.training_flags import DataArguments, EnergyModelArguments
from edlm_hf.commands.training_recipe import parse
from edlm_hf.loading import load_masked, load_with_tokenizer
from edlm_hf.pushing import check_references
from edlm_hf.training import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES, EnergyArguments, energy_lora

SMALL = "--length 16 --eval_blocks 2 --max_steps 1 --per_device_train_batch_size 2 --eval_max_denoising_steps 2"


def train(folder: Path, model: str, more: str = "") -> Path:
    """One step of `edlm train-energy --model MODEL`, into FOLDER/lora."""
    (folder / "my.txt").write_text(200 * "Tyger, Tyger, burning bright, in the forests of the night. ")
    words = f"train-energy --model {model} {more} {SMALL} --use_cpu --report_to none --disable_tqdm true".split()
    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    files = ["--dataset", str(folder / "my.txt"), "--output_dir", str(folder / "lora")]
    result = CliRunner().invoke(app, [*words, *files])
    datasets.config.HF_DATASETS_CACHE = cache
    assert result.exit_code == 0, result.output
    assert "Next     edlm generate --model" in result.stdout
    assert re.search(r"nce_loss +\d\.\d+ ± \d", result.stdout)
    return folder / "lora"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    adapter = "--adapter --adapter_rank 2 --energy_scope revealed"
    return train(tmp_path_factory.mktemp("adapter"), "edlm-books", adapter)


def test_the_folder_holds_the_adapter_alone_and_names_its_base(adapter):
    stored = json.loads((adapter / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "edlm-books"
    assert stored["r"] == 2
    assert stored["lora_alpha"] == 4
    assert not (adapter / "config.json").exists()
    assert (adapter / "adapter_model.safetensors").stat().st_size < 5e6


def test_it_loads_merged_with_the_energies_that_peft_computes(adapter):
    base = AutoModelForMaskedLM.from_pretrained(
        edlm_hf.checkpoint("edlm-books"),
        energy_scope="revealed",
    )
    with_peft = PeftModel.from_pretrained(base, adapter).eval()
    merged, tokenizer = load_with_tokenizer(str(adapter))
    assert type(merged) is edlm_hf.EDLMForMaskedDiffusion
    assert merged.config.energy_scope == "revealed"

    noisy = tokenizer("Tyger, [MASK][MASK] bright", return_tensors="pt").input_ids
    candidates = torch.stack(
        [noisy.where(noisy != tokenizer.mask_token_id, i) for i in (50, 60)],
        dim=1,
    )
    with torch.no_grad():
        energies = with_peft.energy(candidates, noisy)
        torch.testing.assert_close(merged.energy(candidates, noisy), energies, rtol=1e-4, atol=1e-4)


def test_its_scope_is_known_under_any_card(adapter, tmp_path, caplog):
    for name in ("adapter_config.json", "adapter_model.safetensors", "energy_scope.json"):
        shutil.copy(adapter / name, tmp_path)
    (tmp_path / "README.md").write_text("My adapter.")
    assert load_masked(str(tmp_path)).config.energy_scope == "revealed"
    assert not caplog.records

    (tmp_path / "energy_scope.json").unlink()
    assert load_masked(str(tmp_path)).config.energy_scope == "sequence"
    assert "Nothing says for which energy_scope" in caplog.text

    (tmp_path / "energy_scope.json").write_text("[]")
    with pytest.raises(ValueError, match="energy_scope.json of .* is damaged"):
        load_masked(str(tmp_path))


def test_a_pickle_of_an_adapter_is_refused(adapter, tmp_path):
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    torch.save(load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin would be a pickle"):
        load_masked(str(tmp_path))


def test_generate_takes_the_folder_of_the_adapter(adapter):
    words = f"generate --model {adapter} --prompt Tyger --max-new-tokens 4 --max-denoising-steps 2 --seed 0"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0 and result.stdout.startswith("Tyger"), result.output


def test_its_card_says_how_to_load_it_and_it_can_be_shared(adapter):
    card = (adapter / "README.md").read_text()
    assert "`edlm-books`, which ships with edlm-hf" in card and "edlm generate --model" in card
    assert "peft.PeftModel.from_pretrained(base, " in card and "my.txt" in card
    assert "base_model:" not in card  # it is not a repository of the Hub
    check_references(adapter)


def test_a_base_that_is_only_here_is_still_refused(adapter, tmp_path):
    description = json.loads((adapter / "adapter_config.json").read_text())
    description["base_model_name_or_path"] = str(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="no repository of the Hub"):
        check_references(tmp_path)

    del description["base_model_name_or_path"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="names no base model"):
        load_masked(str(tmp_path))


def test_a_folder_with_the_name_of_a_checkpoint_is_not_the_one_that_ships(
    adapter,
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    check_references(adapter)
    (tmp_path / "edlm-books").mkdir()
    with pytest.raises(ValueError, match="'edlm-books', which is no repository of the Hub"):
        check_references(adapter)


def test_access_to_the_hub_holds_for_the_base_and_trust_does_not(adapter, monkeypatch):
    seen, real = [], loading.load

    def spy(function, name, **kwargs):
        seen.append(kwargs)
        return real(function, name, **kwargs)

    monkeypatch.setattr(loading, "load", spy)
    load_with_tokenizer(str(adapter), token="hf_mine", local_files_only=True, trust_remote_code=True)
    assert seen and all(given["token"] == "hf_mine" and given["local_files_only"] for given in seen)
    assert not any(given.get("trust_remote_code") for given in seen)


@pytest.mark.parametrize("bases", [{"a": "a"}, {"a": "b", "b": "a"}])
def test_an_adapter_of_itself_is_refused(tmp_path, monkeypatch, bases):
    monkeypatch.chdir(tmp_path)
    for name, base in bases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    result = CliRunner().invoke(app, ["generate", "--model", "a"])
    assert result.exit_code == 1
    assert "a is its own base" in result.stderr
    assert "Traceback" not in result.output


def test_an_adapter_is_trained_further_as_an_adapter(adapter, tmp_path):
    further = train(tmp_path, str(adapter))
    assert not (further / "config.json").exists()
    assert json.loads((further / "adapter_config.json").read_text())["base_model_name_or_path"] == "edlm-books"
    assert json.loads((further / "energy_scope.json").read_text()) == {"energy_scope": "revealed"}

    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(further / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before if "lora" in name)

    words = ["train-energy", "--model", str(adapter), "--adapter", "--dataset", "x", "--output_dir", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, "--use_cpu"])
    assert result.exit_code == 1
    assert "is an adapter, which is trained further without adapter" in result.stderr


def test_the_learning_rate_suits_what_is_trained(adapter, tmp_path):
    denoiser = MDLMForMaskedLM(
        MDLMConfig(
            vocab_size=8,
            hidden_dim=8,
            n_blocks=1,
            n_heads=1,
            cond_dim=4,
        )
    )
    shared = edlm_hf.EDLMForMaskedDiffusion.from_components(
        denoiser,
        energy_type="nce",
        energy_weights="shared",
    )
    shared.save_pretrained(tmp_path)
    classes = (DataArguments, EnergyModelArguments, EnergyArguments)
    rates = {}
    for words in (
        f"--model {adapter}",
        f"--model {tmp_path}",
        "--model edlm-books",
        "--model edlm-books --adapter",
    ):
        arguments = f"{words} --dataset x --output_dir {tmp_path} --use_cpu".split()
        rates[words] = parse(train_energy, classes, arguments)[-1].learning_rate

    assert list(rates.values()) == [1e-3, 1e-3, 3e-4, 1e-3]


def test_names_of_checkpoints_are_portable(tmp_path):
    assert [portable_name(edlm_hf.checkpoint(name)) for name in edlm_hf.checkpoints.CHECKPOINTS] == [
        *edlm_hf.checkpoints.CHECKPOINTS
    ]
    assert portable_name(str(tmp_path)) == str(tmp_path)


def test_energy_lora_adapts_the_energy_alone():
    config = energy_lora()
    assert (config.r, config.lora_alpha, config.target_modules) == (16, 32, LORA_TARGET_MODULES)
    assert config.modules_to_save == LORA_MODULES_TO_SAVE
    assert energy_lora(4, 8, lora_dropout=0.1).lora_dropout == 0.1


def test_an_adapter_needs_an_energy_to_be_on(tmp_path):
    words = ["train-energy", "--denoiser", "edlm-books", "--adapter", "--dataset", "x", "--output_dir", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, "--use_cpu"])
    assert result.exit_code == 1 and "give model in place of denoiser" in result.stderr
