"""recipes/adapt.py: an adapter of the reveal set, trained on a corpus and measured there, in one go or in several."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM, TrainerCallback

import edlm_hf
from edlm_hf.tokenization import text8_tokenizer

spec = importlib.util.spec_from_file_location(
    "adapt",
    Path(__file__).parents[2] / "recipes" / "adapt.py",
)
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Text of a regular language, and a base beside it whose configuration has the paper's scope."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = text8_tokenizer(model_max_length=16)
    config = edlm_hf.MDLMConfig(
        vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, bos_token_id=tokenizer.bos_token_id,
        model_length=16, hidden_dim=16, cond_dim=8, n_blocks=1, n_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    denoiser = edlm_hf.MDLMForMaskedLM(config)
    edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    path = folder / "corpus.txt"
    path.write_text("a rose is a rose is a rose and " * 200)
    return path


def adapt(corpus, folder, control=None) -> None:
    options = {"rank": 2, "steps": 4, "save_steps": 2, "batch_size": 4, "num_texts": 4, "denoising_steps": 2}
    recipe.adapt(
        corpus,
        folder,
        model=str(corpus.parent / "base"),
        inner_copies="1,2",
        control=control,
        **options,
    )


@pytest.fixture(scope="module")
def adapter(corpus) -> Path:
    adapt(corpus, corpus.parent / "adapter")
    return corpus.parent / "adapter"


def test_results_tell_the_bounds_of_the_same_texts_and_their_differences(adapter):
    found = json.loads((adapter / "results.json").read_text())["bits_per_token"]
    denoiser = found["denoiser, no energy"]["value"]
    for m in (1, 2):
        before, after = (found[f"the {name}, m = {m}"]["value"] for name in ("checkpoint", "adapter"))
        change = found[f"the adapter less the checkpoint, m = {m}"]
        assert change["value"] == pytest.approx(after - before, abs=1e-9)
        assert change["standard_error"] > 0
        assert found[f"the adapter less the denoiser, m = {m}"]["value"] == pytest.approx(after - denoiser, abs=1e-9)


def test_training_that_was_cut_short_goes_on_and_an_adapter_that_is_there_is_only_measured(
    corpus, adapter, tmp_path, monkeypatch
):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    names = "adapter_model.safetensors", "results.json"
    real = recipe.EnergyTrainer
    monkeypatch.setattr(
        recipe,
        "EnergyTrainer",
        lambda *args, **options: real(*args, callbacks=[Interrupt], **options),
    )
    with pytest.raises(KeyboardInterrupt):
        adapt(corpus, tmp_path)
    assert not (tmp_path / names[0]).exists()

    monkeypatch.setattr(recipe, "EnergyTrainer", real)
    adapt(corpus, tmp_path)
    assert all((tmp_path / name).read_bytes() == (adapter / name).read_bytes() for name in names)

    monkeypatch.setattr(recipe, "EnergyTrainer", None)
    (tmp_path / names[1]).unlink()
    adapt(corpus, tmp_path, control=adapter)  # of the same weights
    found = json.loads((tmp_path / names[1]).read_text())["bits_per_token"]
    assert found["the control, m = 2"] == found["the adapter, m = 2"]
    assert found["the adapter less the control, m = 2"] == {"value": 0, "standard_error": 0}

    adapt(corpus, tmp_path)
    assert all((tmp_path / name).read_bytes() == (adapter / name).read_bytes() for name in names)


def test_the_adapter_is_an_energy_of_what_a_step_reveals(corpus, adapter):
    base = AutoModelForMaskedLM.from_pretrained(corpus.parent / "base", energy_scope="revealed")
    model = PeftModel.from_pretrained(base, adapter)
    out = model.generate(
        torch.tensor([[27]]), max_new_tokens=15, max_denoising_steps=3, num_candidates=4,
        generator=torch.Generator().manual_seed(0), return_dict_in_generate=True,
    )  # fmt: skip
    assert model.config.energy_scope == "revealed" and out.sequences.shape == (1, 16)
    assert 'energy_scope="revealed"' in (adapter / "README.md").read_text()


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("state", [None, "{}", '{"global_step": "\\u001b[2J"}'])
def test_a_folder_of_somebody_else_runs_nothing(corpus, adapter, tmp_path, state):
    shutil.copytree(adapter, tmp_path / "theirs")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"):
        torch.save(Trap(tmp_path / "RAN"), tmp_path / "theirs" / name)
    (tmp_path / "theirs" / "trainer_state.json").unlink()
    if state is not None:
        (tmp_path / "theirs" / "trainer_state.json").write_text(state)
    adapt(corpus, tmp_path / "theirs", control=tmp_path / "theirs")
    assert not (tmp_path / "RAN").exists()
    assert json.loads((tmp_path / "theirs" / "results.json").read_text())["training_steps"] is None
    assert json.loads((adapter / "results.json").read_text())["training_steps"] == 4

    torch.load(tmp_path / "theirs" / "training_args.bin", weights_only=False)
    assert (tmp_path / "RAN").exists(), "the trap would not have worked"
