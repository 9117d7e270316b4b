"""`edlm demo`: one screen that shows what planned steps and energies do, with the models that ship.

Three scenes: a prompt continued, the holes of a paragraph filled in, and a small language whose
sentences are right or wrong beyond doubt.
"""

from rich.console import Console

from edlm_hf.checkpoints import CHECKPOINTS
from edlm_hf.demo.grammar_scene import show_grammar
from edlm_hf.demo.prose_scenes import PROSE, load_prose, show_continuation, show_infilling
from edlm_hf.files import to_json

NEXT = (
    f'edlm generate --model {PROSE} --prompt "The old house" --max-new-tokens 120 --temperature 0.9',
    "edlm benchmark samplers --help",
    "edlm train-energy --help",
)


def run_demo(
    prompt: str,
    new_tokens: int,
    steps: int,
    candidates: int,
    seed: int,
    as_json: bool,
) -> None:
    """Show the three scenes and the commands to try next, or print what was found as JSON.

    Args:
        prompt: the text that is continued.
        new_tokens: how many tokens continue it.
        steps: denoising steps T of the planner.
        candidates: k, of the samplers with an energy.
        seed: of every text.
        as_json: print JSON instead.

    Raises:
        ValueError: prompt and new tokens are longer than the model's texts.
    """
    # Quiet, not absent: the scenes are the same, and nothing but JSON is on stdout
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading the models"):
        prose = load_prose()
    console.print(f"[bold]{PROSE}[/bold]: {CHECKPOINTS[PROSE]}", soft_wrap=True)

    found = {
        "continuation": show_continuation(console, prose, prompt, new_tokens, steps, candidates, seed),
        "infilling": show_infilling(console, prose, steps, candidates, seed),
        "grammar": show_grammar(console, candidates, seed),
    }

    # Without markup, since a command may hold brackets, and on one line, to be copied
    console.print("\n[bold]Next[/bold]")
    for command in NEXT:
        console.print(f"  {command}", markup=False, soft_wrap=True)

    if as_json:
        print(to_json(found))


__all__ = ["run_demo"]
