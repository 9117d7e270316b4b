"""The logs of training runs as one JSON file and one plot.

    python recipes/curves.py RUNS OUTPUT

RUNS holds books-cpu-autoregressive, books-cpu-denoiser, books-cpu-denoiser-continued and books-cpu-energy; OUTPUT gets
training.json and training.png.
"""

import json
import math
import sys
from pathlib import Path

from edlm_hf.benchmarks.figures import new_figure, save_figure
from edlm_hf.training import last_complete_checkpoint

KINDS = ("autoregressive", "denoiser", "denoiser-continued", "energy")


def log_of(run: Path) -> list[dict]:
    """What was logged, of a finished run or of one that still goes on."""
    state = run / "trainer_state.json"
    if not state.exists():
        state = Path(last_complete_checkpoint(run), "trainer_state.json")
    return json.loads(state.read_text())["log_history"]


def draw(logs: dict[str, list[dict]], output: Path) -> None:
    figure = new_figure(10, 3.8)
    if figure is None:
        return
    left, right = figure.subplots(1, 2)
    rows = {"autoregressive": logs["autoregressive"], "denoiser": list(logs["denoiser"])}
    steps_before = logs["denoiser"][-1]["step"]
    rows["denoiser"] += [row | {"step": row["step"] + steps_before} for row in logs["denoiser-continued"]]
    name = "eval_bits_per_character"
    for colour, kind in zip(("C0", "C1"), rows, strict=True):
        trained = [(row["step"], row["loss"] / math.log(2)) for row in rows[kind] if "loss" in row]
        measured = [(row["step"], row[name], row[f"{name}_standard_error"]) for row in rows[kind] if name in row]
        left.plot(*zip(*trained, strict=True), color=colour, linewidth=1, label=f"{kind}, training")
        steps, values, spread = zip(*measured, strict=True)
        style = {"fmt": "o", "markersize": 4, "capsize": 2, "label": f"{kind}, validation"}
        left.errorbar(steps, values, yerr=spread, color=colour, **style)
    left.set(xlabel="steps of 8,192 characters", ylabel="bits per character", ylim=(1.4, 3.2))
    steps, losses = zip(*((row["step"], row["loss"]) for row in logs["energy"] if "loss" in row), strict=True)
    right.plot(steps, losses, color="C2", linewidth=1, label="NCE loss, training")
    right.axhline(2 * math.log(2), color="black", linestyle=":", linewidth=1, label="2 log 2: nothing known")
    right.set(xlabel="steps of 32 texts", ylabel="nats")
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False)
    save_figure(figure, output / "training.png")


if __name__ == "__main__":
    runs, output = map(Path, sys.argv[1:])
    logs = {kind: log_of(runs / f"books-cpu-{kind}") for kind in KINDS}
    output.mkdir(parents=True, exist_ok=True)
    (output / "training.json").write_text(json.dumps(logs, indent=0) + "\n")
    draw(logs, output)
