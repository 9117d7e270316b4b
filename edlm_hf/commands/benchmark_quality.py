"""`edlm benchmark quality`: every energy, at equal work."""

from edlm_hf.benchmarks.quality_settings import QualitySettings
from edlm_hf.commands.shared import ResultFolder, run_with_bar, tell_missing_plots
from edlm_hf.files import to_json
from edlm_hf.terminal import write


def quality(folder: ResultFolder, settings: QualitySettings, as_json: bool) -> None:
    """Bounds and samples of MDLM, EDLM with each energy and the AR model at equal work; goes on where it stopped."""
    from edlm_hf.benchmarks.quality import run_study
    from edlm_hf.benchmarks.quality_report import markdown

    result = run_with_bar(run_study, settings, folder)
    tell_missing_plots(result)
    write(to_json(result) if as_json else markdown(result))
