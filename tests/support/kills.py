"""Kill -9 a training command at some moment, repeat it, and compare its weights with those of a run without a break.

    python kills.py FOLDER COUNT SEED    # prints a JSON list, one entry per killed run

The command runs in children forked from this process, which has imported everything, so that a run takes seconds. Every
second kill happens while a checkpoint is written, the others at a moment drawn over the whole run.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from edlm_hf.commands import train
from edlm_hf.training.whole_checkpoints import MANIFEST

STEPS, SAVE_STEPS = 120, 10
FLAGS = f"""--normalize_text8 --style crop --start_token --length 16
--hidden_dim 16 --cond_dim 4 --n_blocks 2 --n_heads 2
--max_steps {STEPS} --save_steps {SAVE_STEPS} --eval_blocks 4 --ema_decay 0.9 --dropout 0.1 --use_cpu
--report_to none --disable_tqdm true --learning_rate 1e-2""".split()


def start(text: Path, folder: Path) -> int:
    """The process that runs the command. What it prints goes to a file beside the folder."""
    process = os.fork()
    if process:
        return process
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1

    try:
        train.train_denoiser(["--dataset", str(text), "--output_dir", str(folder), *FLAGS])
        status = 0
    finally:
        os._exit(status)


def finish(text: Path, folder: Path) -> None:
    _, status = os.waitpid(start(text, folder), 0)
    assert status == 0, Path(f"{folder}.log").read_text()[-3000:]


def is_writing(folder: Path, step: int) -> bool:
    """Whether the checkpoint of a step, or a later one, is being written."""
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) >= step and not (checkpoint / MANIFEST).exists():
            return True
    return False


def kill(process: int, moment) -> bool:
    """Kill a process when `moment()` is true, and return False if it ended before."""
    while not moment():
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.0002)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) < 0


def main(folder: Path, count: int, seed: int) -> list[dict]:
    torch.set_num_threads(1)
    draws, found = random.Random(seed), []
    text = folder / "text.txt"
    text.write_text(" ".join(random.Random(0).choices("the cat sat on a mat".split(), k=2000)))
    began = time.monotonic()
    finish(text, folder / "unbroken")
    seconds = time.monotonic() - began
    unbroken = load_file(folder / "unbroken" / "model.safetensors")

    for number in range(count):
        run = folder / f"killed-{number}"
        moment, killed = "", False
        while not killed:  # a run may end before its moment
            shutil.rmtree(run, ignore_errors=True)
            if number % 2:
                step = draws.randrange(SAVE_STEPS, STEPS, SAVE_STEPS)
                moment = f"while checkpoint-{step} is written"
                killed = kill(start(text, run), lambda run=run, step=step: is_writing(run, step))
            else:
                end = time.monotonic() + draws.uniform(0.05, 0.9) * seconds
                moment = f"{end - time.monotonic():.2f} of {seconds:.2f} s"
                killed = kill(start(text, run), lambda end=end: time.monotonic() >= end)

        left = sorted(path.name for path in run.glob("checkpoint-*"))
        finish(text, run)
        weights = load_file(run / "model.safetensors")
        equal = all(torch.equal(weights[name], unbroken[name]) for name in unbroken)
        found.append({"moment": moment, "checkpoints": len(left), "equal": equal})

    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
