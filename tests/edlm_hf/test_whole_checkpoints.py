"""A run goes on from the newest checkpoint that is whole, bit by bit, also after it was killed."""

import shutil

import pytest
import torch
from killing import check_killed_runs
from published import tiny_config
from safetensors.torch import load_file
from short_runs import train
from training import denoiser_trainer, random_blocks

from edlm_hf import MDLMForMaskedLM
from edlm_hf.training import last_complete_checkpoint
from edlm_hf.training.whole_checkpoints import MANIFEST, fault_of_checkpoint


@pytest.fixture(scope="module")
def unbroken(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(text, folder)
    return folder


@pytest.fixture
def half(unbroken, tmp_path):
    """The unbroken run as it was after step 8."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoint-12")
    (folder / "model.safetensors").unlink()
    return folder


def check_equal(folder, unbroken):
    ours, theirs = (load_file(x / "model.safetensors") for x in (folder, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "present_weights.safetensors")
PARTS += ("trainer_state.json", "config.json")


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_without_a_part_is_set_aside_and_the_one_before_goes_on_bit_by_bit(
    text, half, unbroken, part, caplog
):
    (half / "checkpoint-8" / part).unlink()
    train(text, half)
    check_equal(half, unbroken)
    said = [record.getMessage() for record in caplog.records if "going on from" in record.getMessage()]
    assert len(said) == 1 and "checkpoint-8" in said[0] and said[0].endswith("checkpoint-4.")
    assert (half / "damaged-checkpoint-8").is_dir()


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_taken(half, part, damage, caplog):
    damage(half / "checkpoint-8" / part)
    assert last_complete_checkpoint(half, has_average=True) == str(half / "checkpoint-4")
    assert f"checkpoint-8/{part} is damaged" in caplog.text
    assert (half / "checkpoint-8").exists()  # looking changes nothing


def test_where_all_checkpoints_are_damaged_nothing_begins_anew_by_itself(text, half):
    for step in (4, 8):
        cut(half / f"checkpoint-{step}/optimizer.pt")
    with pytest.raises(
        ValueError, match="(?s)No checkpoint in .* is whole: .*checkpoint-8/opt.*checkpoint-4/opt.*begin"
    ):
        train(text, half)
    assert (half / "checkpoint-8").exists() and (half / "checkpoint-4").exists()


def test_a_checkpoint_whose_writing_was_interrupted_is_passed_over(text, half, unbroken, caplog):
    (half / "checkpoint-8" / MANIFEST).unlink()
    cut(half / "checkpoint-8/trainer_state.json")
    (half / "checkpoint-99").mkdir()
    assert last_complete_checkpoint(half) == str(half / "checkpoint-4") and not caplog.records

    shutil.rmtree(half / "checkpoint-4")
    assert last_complete_checkpoint(half) is None
    train(text, half)  # from the beginning, over what is left
    check_equal(half, unbroken)
    assert last_complete_checkpoint(half / "nothing") is None


def test_a_checkpoint_of_an_earlier_version_goes_on_if_its_parts_are_there(text, half, unbroken):
    (half / "checkpoint-8" / MANIFEST).unlink()
    assert last_complete_checkpoint(half, has_average=True) == str(half / "checkpoint-8")
    cut(half / "checkpoint-8/optimizer.pt")
    assert "optimizer.pt is damaged or cut" in fault_of_checkpoint(half / "checkpoint-8")
    assert last_complete_checkpoint(half, has_average=True) == str(half / "checkpoint-4")


def test_a_checkpoint_given_by_hand_is_looked_at_too(text, half, tmp_path):
    (half / "checkpoint-8/scheduler.pt").unlink()
    with pytest.raises(ValueError, match="cannot go on from .*checkpoint-8 lacks the state of the learning rate"):
        train(text, half, "--resume_from_checkpoint", half / "checkpoint-8")
    trainer = denoiser_trainer(tmp_path / "other", MDLMForMaskedLM(tiny_config()), max_steps=1)
    for given, words in ((str(tmp_path / "none"), "is not there"), (True, "holds no checkpoint")):
        with pytest.raises(ValueError, match=words):
            trainer.train(resume_from_checkpoint=given)


def test_true_stands_for_the_newest_whole_checkpoint(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "ema_decay": 0.5}

    def start():
        torch.manual_seed(0)
        return denoiser_trainer(tmp_path, MDLMForMaskedLM(tiny_config()), **options)

    start().train()
    flip(tmp_path / "checkpoint-6/optimizer.pt")
    resumed = start()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert fault_of_checkpoint(tmp_path / "checkpoint-6", has_average=True) is None


def test_a_damaged_best_checkpoint_leaves_the_last_weights(tmp_path, caplog):
    trainer = denoiser_trainer(
        tmp_path,
        MDLMForMaskedLM(tiny_config()),
        eval_rows=random_blocks(8),
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=1e-2,
    )
    trainer.train()
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}

    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    flip(best / "model.safetensors")
    trainer._load_best_model()
    assert "The best checkpoint is not whole" in caplog.text
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("content", [b"{", b"", b"[1]"], ids=["cut", "empty", "list"])
def test_a_damaged_recipe_is_named(text, half, content):
    (half / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match="recipe.json is .*put it back"):
        train(text, half)


def test_a_finished_run_whose_model_was_damaged_is_written_again(text, half, unbroken):
    shutil.copytree(unbroken / "checkpoint-12", half / "checkpoint-12")
    (half / "model.safetensors").write_bytes(b"cut")
    assert train(text, half)["steps"] == 12
    check_equal(half, unbroken)


def test_three_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    check_killed_runs(tmp_path, count=3, seed=0)
