"""What a training command prints at its end: what was trained, on what, the result, and what to type next."""

import shlex

from edlm_hf.commands.training_flags import DataArguments

# Measurements of the Trainer that say nothing about the model
OF_THE_EVALUATION = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def training_report(result: dict, data: DataArguments, causal: bool) -> str:
    """Lay out the result of a run in groups.

    Args:
        result: as `--json` prints it.
        causal: it is the autoregressive baseline.
    """
    following = next_commands(result["output_dir"], data.eval_dataset or data.dataset, causal)
    groups = [
        ("Trained", trained_lines(result)),
        ("On", [f"{data.dataset} in blocks of {data.length} tokens ({data.style}{start_of(data)})"]),
        ("Result", measured_lines(result)),
        ("Took", took_lines(result)),
        ("Saved", [result["output_dir"]]),
        ("Next", following if result["finished"] else ["repeat the command to go on"]),
    ]
    lines = []
    for name, of_group in groups:
        titles = [name] + [""] * (len(of_group) - 1)
        lines += [f"{title:9}{line}".rstrip() for title, line in zip(titles, of_group, strict=True)]
    return "\n".join(lines)


def start_of(data: DataArguments) -> str:
    return " after a start token" if data.start_token and data.style == "crop" else ""


def trained_lines(result: dict) -> list[str]:
    size = f"{result['class']}, {result['parameters']:,} parameters, {megabytes(result['bytes'])}"
    lines = [size]
    if "energy_overhead" in result:
        lines.append(f"{result['energy_overhead']:g} times the denoiser without the head of the energy")
    return lines


def measured_lines(result: dict) -> list[str]:
    """The measurements with their standard errors where they have one."""
    if not result["finished"]:
        return ["not measured before the end"]

    prefix = "eval_"
    values = {name.removeprefix(prefix): x for name, x in result.items() if name.startswith(prefix)}
    names = [name for name in values if not name.endswith("_standard_error") and name not in OF_THE_EVALUATION]
    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        error = values.get(f"{name}_standard_error")
        suffix = "" if error is None else f" ± {error:.2g}"
        lines.append(f"{name:{width}}  {values[name]:.5g}{suffix}")
    return [*lines, "± is the standard error over texts"]


def took_lines(result: dict) -> list[str]:
    peak = megabytes(result["peak_memory_bytes"])
    return [f"{result['steps']} of {result['max_steps']} steps, {result['training_seconds']} seconds, {peak} at most"]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def next_commands(folder: str, dataset: str, causal: bool) -> list[str]:
    """What to type next with a model, or with the autoregressive baseline (`causal`)."""
    model = f"--model {shlex.quote(folder)}"
    evaluate = f"edlm evaluate {model} --dataset {shlex.quote(dataset)}"
    if causal:
        return [f"{evaluate} --metrics autoregressive_nll"]
    return [f'edlm generate {model} --prompt "once upon a time"', evaluate]


__all__ = ["training_report"]
