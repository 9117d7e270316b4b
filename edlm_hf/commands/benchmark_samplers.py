"""`edlm benchmark samplers`: every way to sample."""

from edlm_hf.benchmarks.samplers_settings import SamplerSettings
from edlm_hf.commands.shared import ResultFolder, run_with_bar, tell_missing_plots
from edlm_hf.files import to_json
from edlm_hf.terminal import write


def samplers(folder: ResultFolder, settings: SamplerSettings, as_json: bool) -> None:
    """Likelihood, samples and time of every way to sample; goes on where it stopped.

    Besides rules of revealing masks, `--sampler` takes `spaced energy=ar candidates=8`, `speculative` and
    `autoregressive`.
    """
    from edlm_hf.benchmarks.samplers import run_samplers
    from edlm_hf.benchmarks.samplers_report import markdown

    result = run_with_bar(run_samplers, settings, folder)
    if result["samples"]:
        tell_missing_plots(result)
    write(to_json(result) if as_json else markdown(result))
