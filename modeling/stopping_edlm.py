"""Stopping criteria of transformers, asked about the finished beginning of every row after each block."""

from collections.abc import Callable

import torch
from transformers import EosTokenCriteria, StopStringCriteria

from .canvas_edlm import Canvas, View
from .samplers import State

# These look at the last token alone, so they are asked about every token that a block has filled.
LOOK_AT_THE_LAST_TOKEN = (EosTokenCriteria, StopStringCriteria)


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
    """The length (B,) at which a criterion ends a row after the block of a view was filled, its full width if none.

    Every criterion is called with the first n tokens of all rows, once for every n at which a row is to be asked. A row
    is asked about its finished tokens, which hold no mask. Its answers at other lengths do not count.
    """
    filled = canvas.filled(view)  # (B, W)
    columns = torch.arange(filled.shape[1], device=filled.device)
    finished = canvas.finished_lengths.unsqueeze(1) - 1 == columns
    lengths = torch.full((len(filled),), filled.shape[1], device=filled.device)
    for criterion in criteria:
        asked = finished & filled.any(-1, keepdim=True)
        if isinstance(criterion, LOOK_AT_THE_LAST_TOKEN):
            asked = filled
        for length in (asked.any(0).nonzero().squeeze(-1) + 1).tolist():
            stops = answers_of(criterion, canvas.beginnings(length)) & asked[:, length - 1]
            lengths = torch.where(stops, lengths.clamp_max(length), lengths)
    return lengths


def stop_ended_rows(state: State, view: View, end_tokens: list[int]) -> None:
    """Fill no more of the rows whose text is finished: all masks that are left stand after their first end of text.

    They become padding when the block is done, so that nothing changes but the number of calls. Position 0 and given
    tokens do not count as an end.
    """
    ends = torch.isin(state.ids, torch.tensor(end_tokens, device=state.ids.device))
    ends = ends & state.free & (view.index > 0)
    ended = ends.long().cumsum(-1) > 0  # from the first end on
    finished = ~(state.masked & ~ended).any(-1, keepdim=True)
    state.free = state.free & ~(finished & ended & state.masked)


def answers_of(criterion: Callable, ids: torch.LongTensor) -> torch.Tensor:
    """What a criterion says of every row of `ids` (B, n): (B,) bool.

    Raises:
        ValueError: it does not say yes or no for every row or for all of them.
    """
    answer = criterion(ids, None)
    try:
        flags = torch.as_tensor(answer, device=ids.device)
    except (TypeError, ValueError, RuntimeError):
        flags = None
    if flags is None or flags.is_floating_point() or flags.numel() not in (1, len(ids)):
        shape = type(answer).__name__ if flags is None else f"{flags.dtype} of shape {tuple(flags.shape)}"
        raise ValueError(
            f"A stopping criterion returned {shape}, but a bool for every row is needed, shape ({len(ids)},), or one "
            "for all."
        )
    return flags.bool().flatten().expand(len(ids))


__all__ = ["stopping_criteria_list", "lengths_when_stopped"]
