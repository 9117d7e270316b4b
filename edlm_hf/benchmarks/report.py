"""What every benchmark reports: where it ran, results that are never half a file, parts that survive interruption."""

import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from edlm_hf.files import to_json, write_atomically
from edlm_hf.hidden_secrets import hide_in_command, hide_in_values, hide_secrets

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def environment(device: torch.device) -> dict:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": hardware(device),
        "command": " ".join(["edlm", *hide_in_command(sys.argv[1:])]),
    }


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


class Parts:
    """Finished parts of a long measurement in a folder: one JSON file each, found again by all that it depends on."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, kind: str, inputs: dict, compute: Callable[[], dict]) -> dict:
        """The stored result of `compute` for these `inputs` (what JSON can hold), computed if there is none.

        Numbers that are not finite come back as None.
        """
        key = to_json(inputs, sort_keys=True)
        path = self.folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            content = {"inputs": inputs, "result": compute()}
            write_atomically(path, to_json(content).encode())
        return json.loads(path.read_text())["result"]


def write_results(result: dict, markdown: str, output: Path) -> None:
    """The result as JSON and as a page; secrets that were in a name or a command are hidden."""
    write_atomically(output / "results.json", to_json(hide_in_values(result), indent=1).encode())
    write_atomically(output / "results.md", hide_secrets(markdown).encode())


def new_figure(width: float, height: float):
    """An empty matplotlib figure of so many inches, which needs no display; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure, path: Path) -> str:
    """Write a PNG, never half of one; returns its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = path.with_name(f".{path.name}")
    FigureCanvasAgg(figure).print_png(picture)
    os.replace(picture, path)
    return path.name


__all__ = ["Parts", "environment", "hardware", "new_figure", "save_figure", "write_results"]
