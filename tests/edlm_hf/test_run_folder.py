"""The folder of a run: nobody else works in it, and training goes on from what is whole, bit by bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from filelock import FileLock
from killing import check_killed_runs
from published import tiny_config
from python_path import python_path
from safetensors.torch import load_file
from training import denoiser_trainer, random_blocks

from edlm_hf import MDLMForMaskedLM
from edlm_hf.commands import training_run
from edlm_hf.commands.train import train_denoiser
from edlm_hf.training import last_complete_checkpoint
from edlm_hf.training.folder_lock import FolderLock
from edlm_hf.training.whole_checkpoints import MANIFEST, fault_of_checkpoint

FLAGS = """--normalize_text8 --style crop --start_token --length 16 --hidden_dim 8 --cond_dim 4 --n_blocks 1 --n_heads 2
--max_steps 12 --save_steps 4 --eval_blocks 4 --ema_decay 0.9 --dropout 0.1 --use_cpu --report_to none
--disable_tqdm true --learning_rate 1e-2""".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat " * 400)
    return path


def train(text, folder, *more) -> dict:
    return train_denoiser(["--dataset", str(text), "--output_dir", str(folder), *FLAGS, *map(str, more)])


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


# -------------------------------------------------------------------------------------------------------------- locks


def test_a_second_run_in_a_folder_ends_at_once_and_says_who_is_there(text, tmp_path):
    with FolderLock(tmp_path / "run"):
        with pytest.raises(
            ValueError, match=rf"Another run works in .*run \(process {os.getpid()} on .*another output"
        ):
            train(text, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()
    train(text, tmp_path / "run", "--max_steps", 1)


def test_runs_that_begin_at_the_same_time_do_not_take_each_others_identity(text, tmp_path, monkeypatch):
    """The second begins while the first makes its blocks: before there is a recipe or a checkpoint."""
    load_sets, refused = training_run.load_sets, []

    def meanwhile(*args):
        monkeypatch.setattr(training_run, "load_sets", load_sets)
        with pytest.raises(ValueError, match="Another run works in"):
            train(text, tmp_path / "run", "--learning_rate", "0.5")
        refused.append(True)
        return load_sets(*args)

    monkeypatch.setattr(training_run, "load_sets", meanwhile)
    train(text, tmp_path / "run")
    assert refused
    assert json.loads((tmp_path / "run/recipe.json").read_text())["learning_rate"] == 1e-2


def test_trainers_in_python_keep_each_other_out_too(tmp_path):
    trainer = denoiser_trainer(tmp_path, MDLMForMaskedLM(tiny_config()), max_steps=1)
    with FolderLock(tmp_path):
        with pytest.raises(ValueError, match="Another run works in"):
            trainer.train()
    trainer.train()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    script = "import sys, time\nfrom edlm_hf.training.folder_lock import FolderLock\n"
    script += f"with FolderLock({str(tmp_path)!r}):\n    print('held', flush=True)\n    time.sleep(600)"
    here = os.environ | {"PYTHONPATH": python_path()}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=here,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"):
        FolderLock(tmp_path).__enter__()

    process.send_signal(signal.SIGKILL)
    process.wait()
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "no locks")], ids=["none", "refused"])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, error):
    def acquire(self):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with FolderLock(tmp_path):
        assert "has no locks: make sure that one run works in it alone" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        FolderLock(tmp_path / "file").__enter__()


# -------------------------------------------------------------------------------------------------- whole checkpoints

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
    options = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    options |= {"load_best_model_at_end": True, "learning_rate": 1e-2}
    trainer = denoiser_trainer(
        tmp_path,
        MDLMForMaskedLM(tiny_config()),
        eval_rows=random_blocks(8),
        **options,
    )
    trainer.train()
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    flip(tmp_path / f"checkpoint-{trainer.state.best_global_step}" / "model.safetensors")
    trainer._load_best_model()
    assert "The best checkpoint is not whole" in caplog.text
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


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


# --------------------------------------------------------------------------------------------------------------- kills


def test_three_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    check_killed_runs(tmp_path, count=3, seed=0)
