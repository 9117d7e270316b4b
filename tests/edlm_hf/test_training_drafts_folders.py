"""Folders of trained draft heads: runs go on from them, and the command saves the denoiser with its head."""

import json
import random

import datasets
import pytest
import torch
from published import tiny_causal, tiny_denoiser
from training import random_blocks, same, trainer_of
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.tokenization import text8_tokenizer


def test_a_folder_holds_the_denoiser_with_the_averaged_head_and_a_run_goes_on_from_it(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    rows = random_blocks(32)
    whole = trainer_of("drafts", tmp_path / "whole", rows, **options)
    whole.train()
    whole.save_model()
    loaded = MDLMForMaskedLM.from_pretrained(tmp_path / "whole")
    with whole.averaged_weights():
        assert same(loaded, whole.model)

    again = trainer_of("drafts", tmp_path / "whole", rows, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(again.model, whole.model)


def test_the_command_saves_the_denoiser_of_a_composite_with_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat"], k=2000)
    (tmp_path / "text.txt").write_text(" ".join(words))

    # A composite with its tokenizer
    tokenizer = text8_tokenizer(16)
    special = {name: getattr(tokenizer, name) for name in ("mask_token_id", "bos_token_id", "pad_token_id")}
    sizes = special | {"vocab_size": len(tokenizer), "model_length": 16}
    causal = tiny_causal(**sizes)
    whole = EDLMForMaskedDiffusion.from_components(tiny_denoiser(**sizes), causal)
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")

    def call(**options):
        flags = [f"--{name}={value}" for name, value in options.items()]
        common = ["--use_cpu", "--report_to=none", "--disable_tqdm=true", "--style=crop", "--json"]
        return CliRunner().invoke(
            app,
            ["train-drafts", f"--dataset={tmp_path / 'text.txt'}", *flags, *common],
        )

    folder = tmp_path / "drafts"
    start = {"denoiser": tmp_path / "whole", "draft_width": 8, "output_dir": folder}
    called = call(
        **start,
        max_steps=40,
        learning_rate=0.05,
        per_device_train_batch_size=16,
        ema_decay=0.9,
    )
    assert called.exit_code == 0, called.output

    result = json.loads(called.stdout)
    assert result["class"] == "MDLMForMaskedLM" and result["steps"] == 40
    assert result["eval_nll_change"] < -5 * result["eval_nll_change_standard_error"] < 0
    assert "nll_without_head" in (folder / "README.md").read_text()

    # The denoiser is what it was, and drafts for its target
    drafter = AutoModelForMaskedLM.from_pretrained(folder)
    assert drafter.config.draft_width == 8
    assert same(drafter.backbone, whole.denoiser.backbone)

    # Trained further, it begins where it was; a head of another width begins anew
    further = tmp_path / "further"
    for width, is_known in ((8, True), (4, False)):
        options = {"denoiser": folder, "draft_width": width, "output_dir": further / str(width)}
        known = json.loads(call(**options, max_steps=1, learning_rate=1e-9, ema_decay=0.0).stdout)
        is_same = known["eval_nll"] == pytest.approx(result["eval_nll"], abs=1e-3)
        assert is_same == is_known

    start_token = torch.tensor([[AutoTokenizer.from_pretrained(folder).bos_token_id]])
    network = EDLMForMaskedDiffusion.from_components(drafter, causal)
    assert network.generate(start_token, max_new_tokens=15, sampler="speculative").shape == (1, 16)

    causal.save_pretrained(tmp_path / "causal")
    called = call(
        **(start | {"output_dir": tmp_path / "of-target"}),
        autoregressive=tmp_path / "causal",
        max_steps=2,
    )
    assert called.exit_code == 0, called.output

    result = json.loads(called.stdout)
    assert 0 < result["eval_refused"] <= result["eval_refused_without_head"] < 1
    assert MDLMForMaskedLM.from_pretrained(tmp_path / "of-target").config.draft_target_dim == 16

    # A head that is there stays, and gets a first draft that reads the target
    options = {"denoiser": folder, "draft_width": 8, "output_dir": tmp_path / "first"}
    called = call(**options, autoregressive=tmp_path / "causal", max_steps=1, learning_rate=1e-9, ema_decay=0.0)
    first = MDLMForMaskedLM.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(first.draft_head.leave.weight, drafter.draft_head.leave.weight)
    found = json.loads(called.stdout)
    assert found["eval_first_refused"] == pytest.approx(found["eval_first_refused_without_head"], abs=1e-3)

    told = call(output_dir=tmp_path / "other")
    assert told.exit_code == 1 and "Give denoiser" in told.stderr
    told = call(denoiser=tmp_path / "whole", output_dir=tmp_path / "other", draft_width=0)
    assert told.exit_code == 1 and "width of a draft head is 0" in told.stderr
