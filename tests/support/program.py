"""The program `edlm`, in a process of its own, as its console script starts it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from python_path import python_path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
MODULE, FUNCTION = PROJECT["scripts"]["edlm"].split(":")
SCRIPT = f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"


def start(*arguments, before: str = "", env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start it. `before` is code that runs before the script, `env` adds to the environment of this process."""
    path = python_path()
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{SCRIPT}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (env or {}),
        **options,
    )
