"""`edlm benchmark draws`: what the precision of draws does to tokens."""

from edlm_hf.benchmarks.draws_settings import DrawSettings
from edlm_hf.files import to_json
from edlm_hf.terminal import write


def draws(settings: DrawSettings, as_json: bool) -> None:
    """What float32 draws do to the tokens of the published sampler: entropy and Gen-PPL, without a network."""
    from edlm_hf.benchmarks.draws import markdown, measure_draws

    rows = measure_draws(settings)
    write(to_json(rows) if as_json else markdown(rows, settings))
