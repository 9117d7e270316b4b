"""A generation as one web page: tokens as they appear, the candidates' energies at every step, which one was taken.

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


@dataclass
class Trajectory:
    """What happened to one row, in plain Python.

    Args:
        changes: for every position the (step, text) it got, in order; step 0 is what was given, and without an entry
            the position is still masked. Special tokens have no text, control characters are symbols.
        energies: for every step the k energies, None where no candidates were weighed; +inf is None.
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
        mask_token_id: the mask token, where the tokenizer does not say it.

    Raises:
        ValueError: the output has no history, or no mask token is known.
    """
    return page(trajectories(output, tokenizer, mask_token_id=mask_token_id))


def trajectories(
    output: EDLMGenerationOutput, tokenizer: PreTrainedTokenizerBase, *, mask_token_id: int | None = None
) -> list[Trajectory]:
    """One `Trajectory` per row; those of several calls can share a `page`.

    Args: as for `generation_html`.

    Raises:
        ValueError: as there.
    """
    if getattr(output, "history", None) is None:
        raise ValueError(
            "The output has no history. Generate with return_dict_in_generate=True and output_history=True."
        )
    mask = tokenizer.mask_token_id if mask_token_id is None else mask_token_id
    if mask is None:
        raise ValueError("The tokenizer has no mask token. Pass mask_token_id=..., the one of the model.")
    # What generate() returns is the last state, also where the end of the text cut it after the last step.
    states = torch.stack([*output.history[:-1], output.sequences]).cpu()  # (steps + 1, B, L)
    steps, rows = len(states) - 1, states.shape[1]
    result = []
    for row in range(rows):
        energies, chosen, sizes = [None] * steps, [None] * steps, [None] * steps
        if output.energies is not None:
            for step in (output.chosen[:, row] >= 0).nonzero()[:, 0].tolist():
                values = output.energies[step, row].tolist()
                energies[step] = [round(value, 4) if math.isfinite(value) else None for value in values]
                chosen[step] = int(output.chosen[step, row])
                sizes[step] = round(float(output.effective_sample_size[step, row]), 4)
        result.append(Trajectory(changes_of(states[:, row], tokenizer, mask), energies, chosen, sizes))
    return result


def changes_of(states: torch.LongTensor, tokenizer: PreTrainedTokenizerBase, mask: int) -> list[list[tuple[int, str]]]:
    """`Trajectory.changes` of one row with the given states (steps + 1, L)."""
    final = states[-1].tolist()
    silent = {*tokenizer.all_special_ids, mask}
    kept = [i for i, token in enumerate(final) if token not in silent]
    texts = dict(zip(kept, pieces([final[i] for i in kept], tokenizer), strict=True))
    changes = [[] if first == mask else [0] for first in states[0].tolist()]
    for position, step in (states[1:] != states[:-1]).T.nonzero().tolist():
        changes[position].append(step + 1)

    def text_at(step: int, position: int) -> str:
        token = int(states[step, position])
        if token == final[position]:
            return texts.get(position, "")
        return "" if token in silent else tokenizer.decode([token])

    return [[(step, visible(text_at(step, position))) for step in when] for position, when in enumerate(changes)]


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to the decoded text; a character made of several tokens goes to the last of them.

    Spaces and such depend on what stands before a token, so it is decoded behind the few tokens before it.
    """
    found, begin, done = [], 0, 0
    for i in range(len(ids)):
        before, now = tokenizer.decode(ids[begin:done]), tokenizer.decode(ids[begin : i + 1])
        complete = not now.endswith("\ufffd") or i == len(ids) - 1
        found.append(now[len(before) :] if complete else "")
        if complete:
            begin, done = done, i + 1
    return found


def page(rows: Sequence[Trajectory]) -> str:
    """The HTML page of some rows; a row with fewer steps than another keeps its last one."""
    data = json.dumps([asdict(row) for row in rows], separators=(",", ":"))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        mask=MASK_SYMBOL,
        steps=max((row.num_steps for row in rows), default=0),
        sections="\n".join(section(number, row) for number, row in enumerate(rows, 1)),
        rows=data.replace("<", "\\u003c"),  # so that no text can end the script
    )


def section(number: int, row: Trajectory) -> str:
    """The finished text of a row, and a place for its candidates if there ever were any."""
    spans = "".join(span(position, row.num_steps) for position in row.changes)
    parts = [f'<section aria-labelledby="text-{number}">', f'<h2 id="text-{number}">Text {number}</h2>']
    parts.append(f'<p class="text">{spans}</p>')
    if row.num_candidates:
        parts.append(f'<div class="weighing" style="--k: {row.num_candidates}" hidden></div>')
    return "\n".join([*parts, "</section>"])


def span(changes: list[tuple[int, str]], num_steps: int) -> str:
    """One position as it is after the last step."""
    if not changes:
        return f'<span class="mask">{MASK_SYMBOL}</span>'
    step, text = changes[-1]
    if step == 0:
        return f'<span class="given">{html.escape(text)}</span>'
    age = round((step - 1) / max(num_steps - 1, 1), 3)
    return f'<span class="drawn" style="--age: {age}" title="step {step}">{html.escape(text)}</span>'


__all__ = ["Trajectory", "generation_html", "page", "trajectories"]
