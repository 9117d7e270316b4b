"""What a training command prints at its end: what was trained, on what, the result, and what to type next."""

import shlex

from edlm_hf.commands.training_flags import DataArguments

# Measurements of the Trainer that say nothing about the model
OF_THE_EVALUATION = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
# Letters of the first column
TITLE_WIDTH = 9


def training_report(result: dict, data: DataArguments, causal: bool) -> str:
    """Lay out the result of a run in groups.

    Args:
        result: as `--json` prints it.
        causal: it is the autoregressive baseline.
    """
    # A run that reached its time limit goes on first
    following = ["repeat the command to go on"]
    if result["finished"]:
        following = next_commands(result["output_dir"], data.eval_dataset or data.dataset, causal)

    blocks = f"{data.dataset} in blocks of {data.length} tokens ({data.style}{start_of(data)})"
    groups = [
        ("Trained", trained_lines(result)),
        ("On", [blocks]),
        ("Result", measured_lines(result)),
        ("Took", took_lines(result)),
        ("Saved", [result["output_dir"]]),
        ("Next", following),
    ]

    # Two columns: the name of a group stands beside its first line
    lines = []
    for name, of_group in groups:
        titles = [name] + [""] * (len(of_group) - 1)
        for title, line in zip(titles, of_group, strict=True):
            lines.append(f"{title:{TITLE_WIDTH}}{line}".rstrip())
    return "\n".join(lines)


def start_of(data: DataArguments) -> str:
    """The start token in words. In wrapped blocks it goes without saying."""
    if not data.start_token or data.style != "crop":
        return ""
    return " after a start token"


def trained_lines(result: dict) -> list[str]:
    """The class, its size, and how much an energy costs beside its denoiser."""
    size = f"{result['class']}, {result['parameters']:,} parameters, {megabytes(result['bytes'])}"
    lines = [size]
    if "energy_overhead" in result:
        lines.append(f"{result['energy_overhead']:g} times the denoiser without the head of the energy")
    return lines


def measured_lines(result: dict) -> list[str]:
    """The measurements with their standard errors where they have one."""
    if not result["finished"]:
        return ["not measured before the end"]

    # `eval_nats_per_token` -> `nats_per_token`
    prefix = "eval_"
    measured = {name: value for name, value in result.items() if name.startswith(prefix)}
    values = {name.removeprefix(prefix): value for name, value in measured.items()}

    # A standard error stands behind its value, not on a line of its own
    names = [name for name in values if name not in OF_THE_EVALUATION]
    names = [name for name in names if not name.endswith("_standard_error")]
    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        line = f"{name:{width}}  {values[name]:.5g}"
        error = values.get(f"{name}_standard_error")
        if error is not None:
            line += f" ± {error:.2g}"
        lines.append(line)
    return [*lines, "± is the standard error over texts"]


def took_lines(result: dict) -> list[str]:
    """Steps, seconds and peak memory."""
    peak = megabytes(result["peak_memory_bytes"])
    return [f"{result['steps']} of {result['max_steps']} steps, {result['training_seconds']} seconds, {peak} at most"]


def megabytes(size: int) -> str:
    """Bytes in units of 10^6."""
    return f"{size / 1e6:,.0f} MB"


def next_commands(folder: str, dataset: str, causal: bool) -> list[str]:
    """What to type next with a model, or with the autoregressive baseline (`causal`)."""
    model = f"--model {shlex.quote(folder)}"
    evaluate = f"edlm evaluate {model} --dataset {shlex.quote(dataset)}"
    if causal:
        return [f"{evaluate} --metrics autoregressive_nll"]
    return [f'edlm generate {model} --prompt "once upon a time"', evaluate]


__all__ = ["training_report"]
