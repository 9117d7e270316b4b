"""`edlm benchmark infilling`: hidden words found again."""

from edlm_hf.benchmarks.infilling_settings import InfillingSettings
from edlm_hf.commands.shared import ResultFolder, run_with_bar
from edlm_hf.files import to_json
from edlm_hf.terminal import write


def infilling(folder: ResultFolder, settings: InfillingSettings, as_json: bool) -> None:
    """Share of hidden words that each sampler finds again in held-out paragraphs; goes on where it stopped."""
    from edlm_hf.benchmarks.infilling import run_infilling
    from edlm_hf.benchmarks.infilling_report import markdown

    result = run_with_bar(run_infilling, settings, folder)
    write(to_json(result) if as_json else markdown(result))
