"""The canvas that masked diffusion fills: prompts, masks to fill, padding, blocks and the end of the text.

It knows no network. Inside, every row is aligned left (text, then the masks appended to it, then padding), so that
positions are right for every kind of model. Outside, the user's columns come first, then the new ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class View:
    """The columns the networks see while one block is filled.

    Args:
        index: (B, W) columns of the canvas, row by row. present: (B, W) bool, False where a row is shorter.
        free: (B, W) bool, the masks of this block. token_types: (B, W), what the tokenizer gave beside the ids.
    """

    index: torch.Tensor
    present: torch.Tensor
    free: torch.Tensor
    token_types: torch.Tensor | None = None

    def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Arguments of the denoiser for some `rows` (R,) besides their ids and their time."""
        given = {"attention_mask": attention_of(self.present[rows])}
        if self.token_types is not None:
            given["token_type_ids"] = self.token_types[rows]
        return given


class Canvas:
    """B rows of text with masks.

    Attributes:
        ids: (B, W) token ids, aligned left. real: (B, W) bool, False at padding. free: (B, W) bool, masks to fill.
        generated: (B, W) bool, tokens that were or will be generated: padding after the end of a text is not.
    """

    def __init__(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        new_tokens: int,
        mask_token_id: int,
        pad_token_id: int | None = None,
        token_types: torch.LongTensor | None = None,
    ):
        """Append `new_tokens` masks to every row, with the token type of its last token.

        Raises:
            ValueError: the shapes of input_ids and attention_mask differ, the mask is not of 0 and 1, or a mask token
                is marked as padding.
        """
        given_real = real_positions(input_ids, attention_mask)
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

        # (B, W): the text, the masks that are appended to it, and what is padding
        columns = torch.arange(input_ids.shape[1] + new_tokens, device=input_ids.device)
        begin = self.lengths.unsqueeze(1)
        used = int((self.lengths + new_tokens).max()) if len(input_ids) else 0
        appended = (columns >= begin) & (columns < begin + new_tokens)
        text = torch.nn.functional.pad(input_ids.gather(1, order), (0, new_tokens))
        self.ids = torch.where(appended, mask_token_id, text)[:, :used]
        self.real = (columns < begin + new_tokens)[:, :used]
        self.free = self.real & (self.ids == mask_token_id)
        self.generated = self.free.clone()
        self.appended = appended[:, :used]
        self.log_probs = torch.full(self.ids.shape, torch.nan, device=self.ids.device)

        self.token_types = None
        if token_types is not None:
            types = torch.nn.functional.pad(token_types.gather(1, order), (0, new_tokens))
            if types.shape[1]:
                last = types.gather(1, (begin - 1).clamp_min(0)).masked_fill(begin == 0, 0)
                types = torch.where(columns < begin, types, last)
            self.token_types = types[:, :used]

    # ------------------------------------------------------------------------------------------------------- blocks

    def views(self, block_length: int | None, model_length: int | None) -> Iterator[View]:
        """The blocks to fill, one after the other: the masks inside the prompts, then the appended ones.

        What a row sees depends on that row alone. One that fits the model is seen whole. A longer one is seen up to
        the end of the block, with as much of the text before it as fits.
        """
        device, width = self.ids.device, self.ids.shape[1]
        whole = self.lengths + self.new_tokens  # (B,)
        fits = torch.ones_like(whole, dtype=torch.bool) if model_length is None else whole <= model_length
        seen = torch.arange(width if bool(fits.all()) else model_length, device=device)

        for block, block_end in self.blocks(block_length):
            end = torch.where(fits, whole, block_end)
            start = torch.where(fits, 0, (end - len(seen)).clamp_min(0))
            index = start.unsqueeze(1) + seen  # (B, W)
            present = index < end.unsqueeze(1)
            index = index.clamp_max(width - 1)
            free = (block & self.free).gather(1, index) & present
            types = None if self.token_types is None else self.token_types.gather(1, index)
            yield View(index, present, free, types)

    def blocks(self, block_length: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every block as its columns (B, W) bool and the column (B,) that follows it."""
        whole = self.lengths + self.new_tokens
        if block_length is None:
            yield self.real, whole
            return
        inside = self.free & ~self.appended
        if inside.any():
            yield inside, self.lengths
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        for begin in range(0, self.new_tokens, block_length):
            low = self.lengths + begin
            high = (self.lengths + min(begin + block_length, self.new_tokens)).unsqueeze(1)
            yield (columns >= low.unsqueeze(1)) & (columns < high), high.squeeze(1)

    def num_blocks(self, block_length: int | None) -> int:
        """How many blocks there are at most."""
        return 1 if block_length is None else 1 + -(-self.new_tokens // block_length)

    def read(self, view: View) -> torch.LongTensor:
        return self.ids.gather(1, view.index)

    def write(self, view: View, ids: torch.LongTensor) -> None:
        """Put the tokens of a view back where it was free."""
        target = torch.where(view.free, view.index, self.ids.shape[1])  # what is not free falls off the end
        self.ids = torch.nn.functional.pad(self.ids, (0, 1)).scatter(1, target, ids)[:, :-1]

    def write_log_probs(self, view: View, log_probs: torch.Tensor) -> None:
        """Put log-probabilities (B, W) of the tokens of a view where it was free."""
        target = torch.where(view.free, view.index, self.ids.shape[1])
        self.log_probs = torch.nn.functional.pad(self.log_probs, (0, 1)).scatter(1, target, log_probs)[:, :-1]

    def filled(self, view: View) -> torch.Tensor:
        """(B, W) bool, the columns that were filled with a view and are still part of the text."""
        target = torch.where(view.free, view.index, self.ids.shape[1])
        nothing = torch.zeros_like(torch.nn.functional.pad(self.free, (0, 1)))
        return nothing.scatter(1, target, True)[:, :-1] & self.generated

    # ---------------------------------------------------------------------------------------------- end of the text

    @property
    def masked(self) -> torch.Tensor:
        """(B, W) bool, the masks that are left."""
        return self.free & (self.ids == self.mask_token_id)

    @property
    def finished_lengths(self) -> torch.Tensor:
        """(B,) how many tokens of a row stand before its first mask."""
        return (self.real & (self.masked.cumsum(-1) == 0)).sum(-1)

    def beginnings(self, length: int) -> torch.LongTensor:
        """(B, length): the first tokens of every row, padded on the left where it is not finished so far."""
        end = self.finished_lengths.clamp_max(length).unsqueeze(1)
        index = end - length + torch.arange(length, device=self.ids.device)
        ids = self.ids.gather(1, index.clamp_min(0))
        return torch.where(index >= 0, ids, 0 if self.pad_token_id is None else self.pad_token_id)

    def end_rows(self, eos_token_ids: list[int]) -> None:
        """Turn what was generated behind the first end-of-text token of a row into padding and stop filling it.

        Position 0, given tokens, and tokens that are still masked do not count as an end.
        """
        done = (self.ids != self.mask_token_id) & self.generated
        done[:, :1] = False
        is_end = done & torch.isin(self.ids, torch.tensor(eos_token_ids, device=self.ids.device))
        behind = (is_end.long().cumsum(-1) - is_end.long()) > 0
        self.pad(behind & self.generated)

    def cut(self, lengths: torch.Tensor) -> None:
        """Turn what was or would be generated after so many tokens (B,) of a row into padding.

        Raises:
            ValueError: there is no padding token.
        """
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        self.pad((columns >= lengths.unsqueeze(1)) & self.generated)

    def pad(self, where: torch.Tensor) -> None:
        if not where.any():
            return
        if self.pad_token_id is None:
            raise ValueError("The text ends early but there is no pad_token_id (nor eos_token_id): pass one.")
        self.ids = self.ids.masked_fill(where, self.pad_token_id)
        self.free = self.free & ~where
        self.generated = self.generated & ~where

    # ------------------------------------------------------------------------------------------- what users are shown

    def draft(self, view: View, ids: torch.LongTensor) -> torch.LongTensor:
        """The first row from where the block of a view begins, as it stands in the `ids` of the view."""
        return ids[0, first_true(view.free[0]) : int(view.present[0].sum())]

    def output(self) -> torch.LongTensor:
        """(B, P + new): the given columns with their masks filled, then the new ones."""
        filled = self.in_given_order(self.ids)
        given = torch.nn.functional.pad(self.given, (0, self.new_tokens), value=self.mask_token_id)
        return torch.where(given == self.mask_token_id, filled, given)

    def output_log_probs(self) -> torch.Tensor:
        """(B, P + new): the log-probabilities of what was generated, NaN elsewhere."""
        kept = torch.where(self.generated, self.log_probs, torch.nan)
        return self.in_given_order(kept, missing=torch.nan)

    def in_given_order(self, values: torch.Tensor, missing: float = 0) -> torch.Tensor:
        """Values (B, W) of rows that are aligned left, in the columns that the user knows: (B, P + new)."""
        width = self.given.shape[1] + self.new_tokens
        padded = torch.nn.functional.pad(values, (0, width - values.shape[1]), value=missing)
        new = self.lengths.unsqueeze(1) + torch.arange(self.new_tokens, device=padded.device)
        return torch.cat([padded.gather(1, self.place), padded.gather(1, new)], dim=1)


def real_positions(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Where the given ids (B, P) are text and not padding: (B, P) bool.

    Raises:
        ValueError: `attention_mask` has another shape, or values besides 0 and 1.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but input_ids {tuple(input_ids.shape)}."
        )
    attention_mask = attention_mask.to(input_ids.device)
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError(
            "attention_mask has values besides 0 and 1. Set it to 1 where input_ids are text and to 0 where they are "
            "padding."
        )
    return attention_mask == 1


def attention_of(real: torch.Tensor) -> torch.Tensor | None:
    """The attention mask (B, L) of the networks, None where nothing is padding (it lets them take faster kernels)."""
    return None if bool(real.all()) else real.long()


def first_true(flags: torch.Tensor) -> int:
    """Index of the first True of (N,), N if there is none."""
    return int((flags.cumsum(-1) == 0).sum())
