"""The canvas that masked diffusion fills: prompts, masks to fill, padding, blocks and the end of the text.

It knows no network. Inside, every row is aligned left (text, then the masks appended to it, then padding), so that
positions are right for every kind of model; outside, the user's columns come first, then the new ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class View:
    """The columns the networks see while one block is filled.

    Args:
        index: (B, W) columns of the canvas, row by row. present: (B, W) bool, False where a row is shorter.
        free: (B, W) bool, the masks of this block.
    """

    index: torch.Tensor
    present: torch.Tensor
    free: torch.Tensor


class Canvas:
    """B rows of text with masks.

    Attributes:
        ids: (B, W) token ids, aligned left. real: (B, W) bool, False at padding. free: (B, W) bool, masks to fill.
    """

    def __init__(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        new_tokens: int,
        mask_token_id: int,
        pad_token_id: int | None = None,
    ):
        """Append `new_tokens` masks to every row.

        Raises:
            ValueError: the shapes of input_ids and attention_mask differ, or a mask token is marked as padding.
        """
        batch, width = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but input_ids {tuple(input_ids.shape)}."
            )
        given_real = attention_mask.to(input_ids.device).bool()
        if (~given_real & (input_ids == mask_token_id)).any():
            raise ValueError(
                "A mask token stands where attention_mask is 0. Mask tokens are what is to be filled: set the "
                "attention_mask to 1 there, or use another token for padding."
            )
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
        self.given, self.new_tokens = input_ids, new_tokens
        # Stable: the text of a row in its order, then its padding. `place` says where each given column went.
        order = (~given_real).long().argsort(dim=-1, stable=True)
        self.place = order.argsort(dim=-1)
        self.lengths = given_real.sum(-1)  # (B,) given tokens
        columns = torch.arange(width + new_tokens, device=input_ids.device)
        text = torch.nn.functional.pad(input_ids.gather(1, order), (0, new_tokens))
        end = self.lengths.unsqueeze(1) + new_tokens
        appended = (columns >= self.lengths.unsqueeze(1)) & (columns < end)
        used = int(end.max()) if batch else 0
        self.ids = torch.where(appended, mask_token_id, text)[:, :used]
        self.real = (columns < end)[:, :used]
        self.free = self.real & (self.ids == mask_token_id)
        self.generated = self.free.clone()  # what was a mask at the start
        self.appended = appended[:, :used]
        self.padded = not bool(self.real.all())

    @property
    def prompt(self) -> torch.LongTensor:
        """Tokens of the first row before its first mask."""
        first = int(self.free[0].long().argmax()) if self.free[0].any() else int(self.real[0].sum())
        return self.ids[0, :first]

    def views(self, block_length: int | None, model_length: int | None) -> Iterator[View]:
        """The blocks to fill, one after the other: the masks inside the prompts, then the appended ones.

        A text that fits the model is seen whole; a longer one up to the end of the block, with as much of what stands
        before it as fits.
        """
        device, width = self.ids.device, self.ids.shape[1]
        columns = torch.arange(width, device=device).expand(self.ids.shape)
        if block_length is None:
            yield View(columns, self.real, self.free)
            return
        inside = self.free & ~self.appended
        blocks = [(inside, self.lengths)] if inside.any() else []
        for begin in range(0, self.new_tokens, block_length):
            low = self.lengths.unsqueeze(1) + begin
            high = (low + block_length).clamp_max(self.lengths.unsqueeze(1) + self.new_tokens)
            blocks.append(((columns >= low) & (columns < high), high.squeeze(1)))
        for block, end in blocks:
            index, present = columns, self.real
            if model_length is not None and width > model_length:
                start = (end - model_length).clamp_min(0).unsqueeze(1)
                index = (start + torch.arange(model_length, device=device)).clamp_max(width - 1)
                present = (start + torch.arange(model_length, device=device)) < end.unsqueeze(1)
            yield View(index, present, (block & self.free).gather(1, index) & present)

    def read(self, view: View) -> torch.LongTensor:
        return self.ids.gather(1, view.index)

    def write(self, view: View, ids: torch.LongTensor) -> None:
        """Put the tokens of a view back where it was free."""
        target = torch.where(view.free, view.index, self.ids.shape[1])  # what is not free falls off the end
        self.ids = torch.nn.functional.pad(self.ids, (0, 1)).scatter(1, target, ids)[:, :-1]

    def finished(self, view: View) -> torch.LongTensor:
        """Tokens of the first row from where the block of a view begins to the next mask, or to the end of the row."""
        row, first = self.read(view)[0], int(view.free[0].long().argmax())
        masked = view.present[0] & (row == self.mask_token_id)
        end = int(masked.long().argmax()) if masked.any() else int(view.present[0].sum())
        return row[first:end]

    def end_rows(self, eos_token_ids: list[int]) -> None:
        """Turn what was generated behind the first end-of-text token of a row into padding and stop filling it.

        Position 0, given tokens, and tokens that are still masked do not count as an end.
        """
        done = (self.ids != self.mask_token_id) & self.generated
        done[:, :1] = False
        is_end = done & torch.isin(self.ids, torch.tensor(eos_token_ids, device=self.ids.device))
        behind = (is_end.long().cumsum(-1) - is_end.long()) > 0
        self.pad(behind & self.generated)

    def stop(self) -> None:
        """Leave what is not filled yet as padding.

        Raises:
            ValueError: there is no padding token.
        """
        self.pad(self.free & (self.ids == self.mask_token_id))

    def pad(self, where: torch.Tensor) -> None:
        if where.any():
            if self.pad_token_id is None:
                raise ValueError("The text ends early but there is no pad_token_id (nor eos_token_id): pass one.")
            self.ids = self.ids.masked_fill(where, self.pad_token_id)
            self.free = self.free & ~where

    def output(self) -> torch.LongTensor:
        """(B, P + new): the given columns with their masks filled, then the new ones."""
        padded = torch.nn.functional.pad(self.ids, (0, self.given.shape[1] + self.new_tokens - self.ids.shape[1]))
        old = torch.where(self.given == self.mask_token_id, padded.gather(1, self.place), self.given)
        new = self.lengths.unsqueeze(1) + torch.arange(self.new_tokens, device=padded.device)
        return torch.cat([old, padded.gather(1, new)], dim=1)
