"""A generation as one web page: tokens as they appear, the energies of the candidates, and the chosen one.

The page needs nothing but a browser: no network, no other file. Without JavaScript it shows the finished texts.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.terminal import visible

MASK_SYMBOL = "░"
TEMPLATE = Path(__file__).with_suffix(".html")
REPLACEMENT = "\ufffd"  # decoded in place of an incomplete character


@dataclass
class Trajectory:
    """The history of one row, in plain Python.

    Args:
        changes: for every position its texts as (step, text), in order. Step 0 is the prompt. A
            position without an entry is still masked. Special tokens have no text, and control
            characters are symbols.
        energies: for every step the k energies, None where no candidates were weighed. +inf is None.
        chosen: for every step the index of the candidate that was taken, or None.
        effective_sample_size: for every step, or None.
    """

    changes: list[list[tuple[int, str]]]
    energies: list[list[float | None] | None]
    chosen: list[int | None]
    effective_sample_size: list[float | None]

    @property
    def num_steps(self) -> int:
        return len(self.energies)

    @property
    def num_candidates(self) -> int:
        """k, or 0 where no candidates were ever weighed."""
        return max((len(step) for step in self.energies if step is not None), default=0)


def generation_html(
    output: EDLMGenerationOutput, tokenizer: PreTrainedTokenizerBase, *, mask_token_id: int | None = None
) -> str:
    """The rows of `output` as a self-contained HTML page with a slider over the steps.

    Args:
        output: of `generate(..., return_dict_in_generate=True, output_history=True)`.
        mask_token_id: the mask token, for tokenizers that have none.

    Raises:
        ValueError: the output has no history, or no mask token is known.
    """
    return page(trajectories(output, tokenizer, mask_token_id=mask_token_id))


def trajectories(
    output: EDLMGenerationOutput, tokenizer: PreTrainedTokenizerBase, *, mask_token_id: int | None = None
) -> list[Trajectory]:
    """One `Trajectory` per row. Rows of several calls can share a `page`.

    Args: as for `generation_html`.

    Raises:
        ValueError: as for `generation_html`.
    """
    if getattr(output, "history", None) is None:
        raise ValueError(
            "The output has no history. Generate with return_dict_in_generate=True and output_history=True."
        )
    if mask_token_id is None:
        mask_token_id = tokenizer.mask_token_id
    if mask_token_id is None:
        raise ValueError("The tokenizer has no mask token. Pass mask_token_id=..., the one of the model.")

    # The last state is the result, which an end of text may have cut after the last step: (steps + 1, B, L)
    states = torch.stack([*output.history[:-1], output.sequences]).cpu()

    num_steps = len(states) - 1
    result = []
    for row in range(states.shape[1]):
        changes = changes_of(states[:, row], tokenizer, mask_token_id)
        weights = weights_of(output, row, num_steps)
        result.append(Trajectory(changes, *weights))
    return result


def weights_of(output: EDLMGenerationOutput, row: int, num_steps: int) -> tuple[list, list, list]:
    """`energies`, `chosen` and `effective_sample_size` of the `Trajectory` of one row."""
    energies = [None] * num_steps
    chosen = [None] * num_steps
    sample_sizes = [None] * num_steps
    if output.energies is None:
        return energies, chosen, sample_sizes

    # (T, B). A step that weighed no candidates has the index -1
    weighed = output.chosen[:, row] >= 0
    for step in weighed.nonzero()[:, 0].tolist():
        # Four decimals are more than a page or a picture shows, and keep its file small
        values = output.energies[step, row].tolist()
        energies[step] = [round(value, 4) if math.isfinite(value) else None for value in values]
        chosen[step] = int(output.chosen[step, row])
        sample_sizes[step] = round(float(output.effective_sample_size[step, row]), 4)
    return energies, chosen, sample_sizes


def changes_of(
    states: torch.LongTensor,
    tokenizer: PreTrainedTokenizerBase,
    mask_token_id: int,
) -> list[list[tuple[int, str]]]:
    """`Trajectory.changes` of one row with the given states (steps + 1, L)."""
    # The final texts of positions, which depend on the tokens around them
    final = states[-1].tolist()
    silent = {*tokenizer.all_special_ids, mask_token_id}
    kept = [position for position, token in enumerate(final) if token not in silent]
    texts = pieces([final[position] for position in kept], tokenizer)
    final_texts = dict(zip(kept, texts, strict=True))

    # The steps at which a position got another token
    steps = [[] if first == mask_token_id else [0] for first in states[0].tolist()]
    for position, step in (states[1:] != states[:-1]).T.nonzero().tolist():
        steps[position].append(step + 1)

    # A token that did not stay is decoded alone: what stood around it is not known any more
    def text_at(step: int, position: int) -> str:
        token = int(states[step, position])
        if token == final[position]:
            return final_texts.get(position, "")
        return "" if token in silent else tokenizer.decode([token])

    changes = []
    for position, steps_of_position in enumerate(steps):
        changes.append([(step, visible(text_at(step, position))) for step in steps_of_position])
    return changes


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds to the decoded text.

    Spaces depend on the tokens before a token, so it is decoded together with a few of them. A
    character made of several tokens goes to the last of these.
    """
    texts = []
    begin = 0
    done = 0  # the context ids[begin:done], whose text is known
    for i in range(len(ids)):
        before = tokenizer.decode(ids[begin:done])
        now = tokenizer.decode(ids[begin : i + 1])

        # An incomplete character waits for its other tokens. Nothing comes after the last one
        complete = not now.endswith(REPLACEMENT) or i == len(ids) - 1
        texts.append(now[len(before) :] if complete else "")
        if complete:
            begin = done
            done = i + 1
    return texts


def page(rows: Sequence[Trajectory]) -> str:
    """The HTML page of some rows. A row with fewer steps than another keeps its last one."""
    # Without "<" no text can end the script
    data = json.dumps([asdict(row) for row in rows], separators=(",", ":"))
    data = data.replace("<", "\\u003c")

    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        mask=MASK_SYMBOL,
        steps=max((row.num_steps for row in rows), default=0),
        start=first_step_shown(rows),
        sections="\n".join(section(number, row) for number, row in enumerate(rows, 1)),
        rows=data,
    )


def first_step_shown(rows: Sequence[Trajectory]) -> int:
    """The step with the lowest effective sample size, where the energy decides most. Without an energy the last one.

    Steps are counted from 1. Of several the first.
    """
    sizes = []
    for row in rows:
        for step, size in enumerate(row.effective_sample_size, 1):
            if size is not None:
                sizes.append((size, step))

    last = max((row.num_steps for row in rows), default=0)
    return min(sizes)[1] if sizes else last


def section(number: int, row: Trajectory) -> str:
    """The finished text of a row, and an element for its candidates if there ever were any."""
    # Finished text, so that the page says something without JavaScript
    spans = "".join(span(changes, row.num_steps) for changes in row.changes)
    parts = [
        f'<section aria-labelledby="text-{number}">',
        f'<h2 id="text-{number}">Text {number}</h2>',
        f'<p class="text">{spans}</p>',
    ]
    if row.num_candidates:
        parts.append(f'<div class="weighing" style="--k: {row.num_candidates}" hidden></div>')
    parts.append("</section>")
    return "\n".join(parts)


def span(changes: list[tuple[int, str]], num_steps: int) -> str:
    """One position as it is after the last step."""
    if not changes:
        return f'<span class="mask">{MASK_SYMBOL}</span>'

    step, text = changes[-1]
    text = html.escape(text)
    if step == 0:
        return f'<span class="given">{text}</span>'

    # From 0 at the first step to 1 at the last
    age = round((step - 1) / max(num_steps - 1, 1), 3)
    return f'<span class="drawn" style="--age: {age}" title="step {step}">{text}</span>'


__all__ = ["Trajectory", "generation_html", "page", "trajectories"]
