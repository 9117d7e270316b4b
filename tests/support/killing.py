"""The test of runs that are killed, for any number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kills
from python_path import python_path


def check_killed_runs(folder: Path, count: int, seed: int) -> None:
    """Kill `count` runs, let each go on, and compare every weight bit by bit with those of a run without a break."""
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    here |= {"PYTHONPATH": python_path()}
    command = [sys.executable, kills.__file__, str(folder), str(count), str(seed)]
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = json.loads(done.stdout.splitlines()[-1])

    assert len(runs) == count and all(run["equal"] for run in runs), runs
