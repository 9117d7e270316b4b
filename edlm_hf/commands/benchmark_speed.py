"""`edlm benchmark speed`: `generate()` against the published samplers."""

from edlm_hf.benchmarks.speed_settings import SpeedSettings
from edlm_hf.commands.shared import ResultFolder, run_with_bar, tell_missing_plots
from edlm_hf.files import to_json
from edlm_hf.terminal import write


def speed(folder: ResultFolder, settings: SpeedSettings, as_json: bool) -> None:
    """Time, network calls and memory of generate() against the published samplers, on the same random weights."""
    from edlm_hf.benchmarks.speed import markdown, run_benchmark

    result = run_with_bar(run_benchmark, settings, folder)
    tell_missing_plots(result)
    write(to_json(result) if as_json else markdown(result))
