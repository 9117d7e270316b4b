"""The logs of training runs as one JSON file and one plot.

    python recipes/curves.py RUNS OUTPUT

RUNS holds prose-cpu-autoregressive, prose-cpu-denoiser and prose-cpu-energy, and where they were trained the same
with -continued, -third and -fourth, and prose-cpu-drafts with -second. OUTPUT gets training.json
and training.png, in which the drafts are not drawn.
"""

import json
import math
import sys
from pathlib import Path

from edlm_hf.benchmarks.figures import light_frame, new_figure, save_figure
from edlm_hf.training import last_complete_checkpoint

LIKELIHOODS = ("autoregressive", "denoiser")
STAGES = ("second", "continued", "third", "fourth")
ENERGY = "energy"
DRAFTS = "drafts"
MEASURED = "eval_bits_per_token"


def log_of(run: Path) -> list[dict]:
    """What was logged, of a finished run or of one that still goes on."""
    state = run / "trainer_state.json"
    if not state.exists():
        state = Path(last_complete_checkpoint(run), "trainer_state.json")
    return json.loads(state.read_text())["log_history"]


def following(first: list[dict], continued: list[dict]) -> list[dict]:
    """The log of a run that went on with the weights of a first one, with its steps counted from there."""
    last = max(row["step"] for row in first)
    return [row | {"step": row["step"] + last} for row in continued]


def draw(logs: dict[str, list[dict]], output: Path) -> None:
    """Plot the losses of the likelihoods on the left, that of the energy on the right."""
    figure = new_figure(10, 3.8)
    if figure is None:
        return
    left, right = figure.subplots(1, 2)

    for i, kind in enumerate(LIKELIHOODS):
        colour = f"C{i}"
        trained = [(row["step"], row["loss"] / math.log(2)) for row in logs[kind] if "loss" in row]
        left.plot(*zip(*trained, strict=True), color=colour, linewidth=1, label=f"{kind}, training")

        measured = [row for row in logs[kind] if MEASURED in row]
        left.errorbar(
            [row["step"] for row in measured],
            [row[MEASURED] for row in measured],
            yerr=[row[f"{MEASURED}_standard_error"] for row in measured],
            color=colour,
            fmt="o",
            markersize=4,
            capsize=2,
            label=f"{kind}, validation",
        )
    left.set(xlabel="steps of 4,096 tokens", ylabel="bits per token", ylim=(4.5, 9))

    # Of a text and a draw: 2 log 2 where nothing is known
    trained = [(row["step"], row["loss"]) for row in logs[ENERGY] if "loss" in row]
    right.plot(*zip(*trained, strict=True), color="C2", linewidth=1, label="NCE loss, training")
    right.axhline(2 * math.log(2), color="black", linestyle=":", linewidth=1, label="2 log 2: nothing known")
    right.set(xlabel="steps of 16 texts", ylabel="nats")

    for axes in (left, right):
        light_frame(axes)
        axes.legend(fontsize="small", frameon=False)
    save_figure(figure, output / "training.png")


def main():
    runs, output = map(Path, sys.argv[1:])
    kinds = [*LIKELIHOODS, ENERGY]
    if (runs / f"prose-cpu-{DRAFTS}").exists():
        kinds.append(DRAFTS)
    logs = {kind: log_of(runs / f"prose-cpu-{kind}") for kind in kinds}
    for kind in kinds:
        for stage in STAGES:
            run = runs / f"prose-cpu-{kind}-{stage}"
            if run.exists():
                logs[kind] += following(logs[kind], log_of(run))

    output.mkdir(parents=True, exist_ok=True)
    (output / "training.json").write_text(json.dumps(logs, indent=0) + "\n")
    draw(logs, output)


if __name__ == "__main__":
    main()
