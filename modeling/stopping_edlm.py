"""Stopping criteria of transformers, asked about the finished beginning of rows after each block."""

from collections.abc import Callable

import torch
from transformers import EosTokenCriteria, StopStringCriteria

from .canvas_edlm import Canvas, View, is_any_of
from .chain_state import State

# These look at the last token alone, so they are asked about every token that a block has filled.
LAST_TOKEN_CRITERIA = (EosTokenCriteria, StopStringCriteria)


def stopping_criteria_list(given) -> list[Callable]:
    """The criteria of a `StoppingCriteriaList`, a plain list, a single criterion, or None.

    Raises:
        ValueError: something else was given.
    """
    if given is None:
        return []
    criteria = list(given) if isinstance(given, (list, tuple)) else [given]
    for criterion in criteria:
        if isinstance(criterion, type) or not callable(criterion):
            raise ValueError(
                f"stopping_criteria holds {criterion!r}, but a criterion is called as criterion(input_ids, scores). "
                "Pass a StoppingCriteriaList, a list of criteria, or one of them."
            )
    return criteria


def lengths_when_stopped(criteria: list[Callable], canvas: Canvas, view: View) -> torch.Tensor:
    """The length (B,) at which a criterion ends a row, after the block of a view was filled.

    It is the full width for a row that goes on. Every criterion is called with the first n tokens of
    all rows, once for every n at which a row is asked. A row is asked about its finished tokens,
    which hold no mask. Its answers at other lengths do not count.
    """
    # (B, W): the tokens of this block, and the last finished one of a row in which there are any
    filled = canvas.filled(view)
    batch, width = filled.shape
    columns = torch.arange(width, device=filled.device)
    last_column = canvas.finished_lengths.unsqueeze(1) - 1
    has_filled = filled.any(-1, keepdim=True)
    last_finished = (columns == last_column) & has_filled

    lengths = torch.full((batch,), width, device=filled.device)
    for criterion in criteria:
        # Columns (W,) at which a row is asked, one call for each
        asked = filled if isinstance(criterion, LAST_TOKEN_CRITERIA) else last_finished
        asked_columns = asked.any(0).nonzero().squeeze(-1)
        for column in asked_columns.tolist():
            # Rows (B,) that a criterion ends here, unless they have ended before
            length = column + 1
            answers = answers_of(criterion, canvas.beginnings(length))
            stops = answers & asked[:, column]
            lengths = torch.where(stops, lengths.clamp_max(length), lengths)
    return lengths


def stop_ended_rows(state: State, view: View, end_tokens: list[int]) -> None:
    """Stop filling rows in which all masks that are left stand after the first end of the text.

    These masks become padding when the block is done, so that nothing changes but the number of
    calls. Position 0 and given tokens do not count as an end.
    """
    # (B, L): ends of the text, and all that stands from the first one on
    may_end = state.free & (view.index > 0)
    is_end = is_any_of(state.ids, end_tokens) & may_end
    ended = is_end.long().cumsum(-1) > 0

    # (B, 1): rows that need no mask filled before their end
    needed = state.masked & ~ended
    finished = ~needed.any(-1, keepdim=True)
    state.free = state.free & ~(finished & ended & state.masked)


def answers_of(criterion: Callable, ids: torch.LongTensor) -> torch.Tensor:
    """The answers (B,) bool of a criterion for every row of `ids` (B, n).

    Raises:
        ValueError: they are not a bool for every row, or one for all.
    """
    # There are no scores of next tokens
    answer = criterion(ids, None)
    try:
        flags = torch.as_tensor(answer, device=ids.device)
    except (TypeError, ValueError, RuntimeError):
        flags = None

    if flags is None or flags.is_floating_point() or flags.numel() not in (1, len(ids)):
        given = type(answer).__name__
        if flags is not None:
            given = f"{flags.dtype} of shape {tuple(flags.shape)}"
        raise ValueError(
            f"A stopping criterion returned {given}, but a bool for every row is needed, shape ({len(ids)},), or one "
            "for all."
        )
    return flags.bool().flatten().expand(len(ids))
