"""The folder of a run is locked: no other run works in it."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from published import tiny_config
from python_path import python_path
from short_runs import train
from training import denoiser_trainer

from edlm_hf import MDLMForMaskedLM
from edlm_hf.commands import training_run
from edlm_hf.training.folder_lock import FolderLock


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
