"""`edlm demo`: one screen that shows what planned steps and energies do."""

import logging
from dataclasses import dataclass

from edlm_hf.settings import option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the scenes show."""

    prompt: str = option("It was late in the evening when the captain", help="The text that is continued.")
    max_new_tokens: int = option(100, min=1, old=("new-tokens",), help="Tokens that continue it.")
    max_denoising_steps: int = option(16, min=1, old=("steps",), help="Denoising steps T of the planner.")
    num_candidates: int = option(8, min=2, old=("candidates",), help="Candidates k that an energy weighs.")
    seed: int = option(0, help="Seed of all randomness.")


def demo(options: DemoOptions, as_json: bool) -> None:
    """Show planned steps and energies at work: a prompt continued, holes filled in, a language that can be checked."""
    from edlm_hf.demo import run_demo

    # Advice on calls that the reader does not see. The levels are set back at the end, since the
    # function is also called from other programs
    loggers = [logging.getLogger(name) for name in ("transformers", "edlm_hf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        run_demo(
            prompt=options.prompt,
            new_tokens=options.max_new_tokens,
            steps=options.max_denoising_steps,
            candidates=options.num_candidates,
            seed=options.seed,
            as_json=as_json,
        )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
