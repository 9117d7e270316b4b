"""The states of a generation that a picture shows, in plain Python."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.picture.layout import drawable
from edlm_hf.visualization import MASK_SYMBOL, trajectories

# What a token is in a state. NEXT is a mask that the step after it reveals, NEW a token that was a
# mask in the state above.
GIVEN, MASK, NEXT, NEW, OLD = "given", "mask", "next", "new", "old"


@dataclass
class State:
    """The text after a step.

    Args:
        step: 0 before the first step.
        texts: of all tokens, empty at masks.
        kinds: of all tokens: GIVEN, MASK, NEXT, NEW or OLD.
        energies: of the candidates of the next step, None where none were weighed. +inf is None.
        chosen: the candidate that was taken, or None.
    """

    step: int
    texts: list[str]
    kinds: list[str]
    energies: list[float | None] | None
    chosen: int | None

    def text(self) -> str:
        """The text with a symbol for every mask."""
        pairs = zip(self.texts, self.kinds, strict=True)
        return "".join(MASK_SYMBOL if kind in (MASK, NEXT) else text for text, kind in pairs)


def states_of(
    output: EDLMGenerationOutput,
    tokenizer: PreTrainedTokenizerBase,
    mask_token_id: int | None,
    most_states: int,
) -> list[State]:
    """The states of the first row of `output`. Of too many, some at even distances.

    Args:
        output: of `generate(..., return_dict_in_generate=True, output_history=True)`.
        mask_token_id: the mask token, None for the one of the tokenizer.
        most_states: at least 2, for the first and the last state.

    Raises:
        ValueError: the output has no history, or no mask token is known.
    """
    # 1. What became of every token: (step, text) pairs. An output of several rows has the first one drawn
    trajectory = trajectories(output, tokenizer, mask_token_id=mask_token_id)[0]
    if mask_token_id is None:
        mask_token_id = tokenizer.mask_token_id

    # 2. Which of them are masks, (steps + 1, L), the last state being the result
    rows = [state[0] for state in (*output.history[:-1], output.sequences)]
    masked = (torch.stack(rows) == mask_token_id).tolist()

    # 3. The states that are shown
    states = []
    above = None
    for step in shown_steps(trajectory.num_steps, most_states):
        # (L,) texts. A mask has none, whatever stood there before
        texts = [text_after(changes, step) for changes in trajectory.changes]
        pairs = zip(texts, masked[step], strict=True)
        texts = ["" if is_masked else text for text, is_masked in pairs]

        # Nothing comes after the last state
        energies = None
        chosen = None
        if step < trajectory.num_steps:
            energies = trajectory.energies[step]
            chosen = trajectory.chosen[step]

        kinds = kinds_after(masked, step, above)
        states.append(State(step, texts, kinds, energies, chosen))
        above = step
    return states


def shown_steps(num_steps: int, most_states: int) -> list[int]:
    """The steps after which a state is shown, 0 for the state before the first one.

    >>> shown_steps(3, 9), shown_steps(16, 5)
    ([0, 1, 2, 3], [0, 4, 8, 12, 16])
    """
    if num_steps == 0:
        return [0]
    intervals = min(num_steps, most_states - 1)
    return [round(i * num_steps / intervals) for i in range(intervals + 1)]


def text_after(changes: list[tuple[int, str]], step: int) -> str:
    """The text of a token after a step, as a picture can hold it."""
    texts = [text for number, text in changes if number <= step]
    return drawable(texts[-1]) if texts else ""


def kinds_after(masked: list[list[bool]], step: int, above: int | None) -> list[str]:
    """What every token is after a step.

    Args:
        masked: for every step which tokens are masks.
        above: the step of the state above, None in the first state.
    """
    kinds = []
    for position, is_masked in enumerate(masked[step]):
        # NEXT is about the next step, also where the state below is of a later one
        if is_masked:
            is_next = step + 1 < len(masked) and not masked[step + 1][position]
            kinds.append(NEXT if is_next else MASK)
        elif not masked[0][position]:
            kinds.append(GIVEN)
        else:
            kinds.append(NEW if masked[above][position] else OLD)
    return kinds


__all__ = ["GIVEN", "MASK", "NEW", "NEXT", "OLD", "State", "shown_steps", "states_of"]
