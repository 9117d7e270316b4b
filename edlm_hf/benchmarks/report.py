"""What every benchmark reports: where it ran, how far it is, and results as whole files."""

import dataclasses
import datetime
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from edlm_hf.evaluation import Estimate
from edlm_hf.files import to_json, write_atomically
from edlm_hf.hidden_secrets import hide_in_command, hide_in_values, hide_secrets


def environment(device: torch.device) -> dict:
    """Date, versions, hardware and the command, without secrets that stand in it."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": hardware(device),
        "command": " ".join(["edlm", *hide_in_command(sys.argv[1:])]),
    }


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its cores and the threads in use."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"

    name = platform.processor() or platform.machine()
    # On Linux `platform` knows the architecture alone. A line is "model name : Intel(R) Xeon(R) ..."
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        if models:
            name = models[0]
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


class Progress:
    """The number of finished measurements, and the one that runs.

    Args:
        advance: called with (measurements finished, all of them, what runs now).
        total: number of measurements.
    """

    def __init__(self, advance: Callable[[int, int, str], None], total: int):
        self.advance = advance
        self.total = total
        self.finished = 0
        self.label = ""

    def start(self, label: str) -> None:
        """Say what runs from now on."""
        self.label = label
        self.advance(self.finished, self.total, self.label)

    def finish_one(self) -> None:
        self.finished += 1
        self.advance(self.finished, self.total, self.label)


def as_dict(estimate: Estimate | None) -> dict | None:
    """Value, standard error, number of samples and unit of an estimate of any kind."""
    if estimate is None:
        return None

    # The fields of the base class alone: the kinds of estimates have more, such as nats of every text
    names = [field.name for field in dataclasses.fields(Estimate)]
    return {name: getattr(estimate, name) for name in names}


def write_results(result: dict, markdown: str, output: Path) -> None:
    """Write the result as JSON and as a page. Secrets in a name or a command are hidden."""
    values = to_json(hide_in_values(result), indent=1)
    page = hide_secrets(markdown)
    write_atomically(output / "results.json", values.encode())
    write_atomically(output / "results.md", page.encode())


__all__ = ["Progress", "as_dict", "environment", "hardware", "write_results"]
