"""Texts as a causal language model reads them, and back to the positions of the given rows.

Shapes: B rows, k candidates per row, L positions. Columns are places in the input of the model,
positions are places in the given rows.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class StartToken:
    """The token `token_id` that is put in front of the rows where it is `needed`, (B,) bool."""

    token_id: int
    needed: torch.Tensor


@dataclass(frozen=True)
class Columns:
    """Some columns of N texts: what a causal model reads there, and what it predicts from there.

    Args:
        input_ids: (N, n) the tokens that are read.
        targets: (N, n) the next tokens of the texts.
        predicts: (N, n) bool on the CPU, where log p of the target is wanted.
    """

    input_ids: torch.LongTensor
    targets: torch.LongTensor
    predicts: torch.Tensor

    def select(self, texts: slice) -> "Columns":
        """The same columns of some of the texts."""
        return Columns(self.input_ids[texts], self.targets[texts], self.predicts[texts])


@dataclass(frozen=True)
class CausalTexts:
    """Texts as a causal model reads them: [start token?] + text, aligned left.

    Args:
        input_ids, targets, predicts: (B, k, L), (B, k, L) and (B, L) on the device, see `Columns`.
        column_of_token: (B, L) the column that predicts the c-th token of the text, -1 for none.
        position_of_token: (B, L) the position of the c-th token of the text in the given rows.
        is_scored: (B, L) bool, whether log p of the c-th token of the text is wanted.
    """

    input_ids: torch.LongTensor
    targets: torch.LongTensor
    predicts: torch.Tensor
    column_of_token: torch.LongTensor
    position_of_token: torch.LongTensor
    is_scored: torch.Tensor

    @classmethod
    def align(
        cls,
        ids: torch.LongTensor,
        scored: torch.Tensor,
        real: torch.Tensor,
        start: StartToken,
    ) -> "CausalTexts":
        """The texts of `ids` (B, k, L).

        Args:
            scored: (B, L) bool, where log p is wanted.
            real: (B, L) bool, False at padding.
        """
        k, length = ids.shape[1:]
        ids = ids.masked_fill(~real.unsqueeze(1), 0)
        scored = scored & real

        # 1. The text of every row comes first, its padding after it.
        order = (~real).long().argsort(dim=-1, stable=True)
        order_of_candidates = order.unsqueeze(1).expand(-1, k, -1)  # (B, k, L)
        text = ids.gather(2, order_of_candidates)
        scored = scored.gather(1, order)

        # 2. Column c predicts token c of the text after a start token, else token c + 1.
        started = start.needed.unsqueeze(1)  # (B, 1)
        column = torch.arange(length, device=ids.device) - (~started).long()
        scored = scored & (column >= 0)

        # 3. What is read and predicted: x_0 x_1 ... and x_1 x_2 ...,
        #    or <start> x_0 ... and x_0 x_1 ...
        with_start = nn.functional.pad(text[..., :-1], (1, 0), value=start.token_id)
        has_start = started.unsqueeze(1)  # (B, 1, 1)
        return cls(
            input_ids=torch.where(has_start, with_start, text),
            targets=torch.where(has_start, text, shift_left(text)),
            predicts=torch.where(started, scored, shift_left(scored)),
            column_of_token=column,
            position_of_token=order,
            is_scored=scored,
        )

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`predicts` (B, L), and whether a column is the same in all candidates of every row (L,).

        The host needs both, and waits once for them.
        """
        # Compared with the first candidate, (B, k, L), then over candidates and rows
        same_input = self.input_ids == self.input_ids[:, :1]
        same_target = self.targets == self.targets[:, :1]
        is_shared = (same_input & same_target).all(1).all(0)

        on_host = torch.cat([self.predicts, is_shared.unsqueeze(0)]).cpu()
        return on_host[:-1], on_host[-1]

    def shared_columns(self, predicts: torch.Tensor, end: int) -> Columns:
        """The first columns of the first candidate of every row, N = B. `predicts` comes from `read`."""
        input_ids = self.input_ids[:, 0, :end]
        targets = self.targets[:, 0, :end]
        return Columns(input_ids, targets, predicts[:, :end])

    def columns(self, predicts: torch.Tensor, begin: int, end: int) -> Columns:
        """Some columns of every candidate, N = B k. `predicts` comes from `read`."""
        # (B k, end - begin) each
        k = self.input_ids.shape[1]
        input_ids = self.input_ids[..., begin:end].flatten(0, 1)
        targets = self.targets[..., begin:end].flatten(0, 1)
        predicts = predicts[:, begin:end].repeat_interleave(k, dim=0)
        return Columns(input_ids, targets, predicts)

    def by_position(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the first columns (B, k, <= L) at positions of the given rows."""
        batch, k, length = self.input_ids.shape

        # From columns to tokens of the text, 0 where none is wanted: (B, k, L)
        num_missing = length - log_probs.shape[-1]
        log_probs = nn.functional.pad(log_probs, (0, num_missing))
        column = self.column_of_token.clamp_min(0)
        column = column.unsqueeze(1).expand(batch, k, -1)
        of_tokens = log_probs.gather(2, column)
        of_tokens = torch.where(self.is_scored.unsqueeze(1), of_tokens, 0)

        # From tokens to positions
        position = self.position_of_token.unsqueeze(1).expand(-1, k, -1)
        return torch.zeros_like(of_tokens).scatter(2, position, of_tokens)


def shift_left(x: torch.Tensor) -> torch.Tensor:
    """Every entry in the place before its own, 0 in the last place."""
    return nn.functional.pad(x[..., 1:], (0, 1))
