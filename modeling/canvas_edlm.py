"""The canvas that masked diffusion fills: prompts, masks, padding, blocks and ends of texts.

It knows no network. Inside, every row is aligned left (text, then the masks appended to it, then
padding), so that positions are right for every kind of model. Outside, the user's columns come
first, then the new ones.

Shapes: B rows, P given columns, W columns of the canvas, W' columns of a view.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass
class View:
    """The columns that the networks see while one block is filled.

    Args:
        index: (B, W') columns of the canvas, row by row.
        present: (B, W') bool, False where a row is shorter.
        free: (B, W') bool, the masks of this block.
        token_types: (B, W'), or None where the tokenizer gave none.
    """

    index: torch.Tensor
    present: torch.Tensor
    free: torch.Tensor
    token_types: torch.Tensor | None = None


class Canvas:
    """B rows of text with masks.

    Attributes:
        ids: (B, W) token ids, aligned left.
        real: (B, W) bool, False at padding.
        free: (B, W) bool, masks to fill.
        appended: (B, W) bool, the new positions after the given text.
        generated: (B, W) bool, tokens that were or will be generated. Padding after the end of a
            text does not count.
        log_probs: (B, W) log p_theta of what was generated, NaN elsewhere.
        lengths: (B,) given tokens of every row.
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
            ValueError: the shapes of input_ids and attention_mask differ, the mask is not of 0 and
                1, or a mask token is marked as padding.
        """
        given_real = real_positions(input_ids, attention_mask)
        if (~given_real & (input_ids == mask_token_id)).any():
            raise ValueError(
                "A mask token stands where attention_mask is 0. Mask tokens are what is to be "
                "filled: set the attention_mask to 1 there, or use another token for padding."
            )
        self.given = input_ids
        self.new_tokens = new_tokens
        self.mask_token_id = mask_token_id
        self.pad_token_id = pad_token_id

        # 1. Align left: the text of a row in its order, then its padding (the sort is stable).
        # (B, P) aligned -> given column, and the inverse of it
        order = (~given_real).long().argsort(dim=-1, stable=True)
        self.aligned = order.argsort(dim=-1)
        self.lengths = given_real.sum(-1)

        # 2. Append masks: (B, P + new), of which the first W columns are used
        begin = self.lengths.unsqueeze(1)
        end = begin + new_tokens
        width = int(end.max()) if len(input_ids) else 0
        most_columns = input_ids.shape[1] + new_tokens
        columns = torch.arange(most_columns, device=input_ids.device)
        is_real = columns < end
        is_appended = is_real & (columns >= begin)
        text = F.pad(input_ids.gather(1, order), (0, new_tokens))
        ids = torch.where(is_appended, mask_token_id, text)

        # (B, W) each
        self.ids = ids[:, :width]
        self.real = is_real[:, :width]
        self.appended = is_appended[:, :width]
        self.free = self.real & (self.ids == mask_token_id)
        self.generated = self.free.clone()
        self.log_probs = torch.full(self.ids.shape, torch.nan, dtype=torch.float32, device=self.ids.device)

        # 3. Token types: the new tokens have the type of the last given one, 0 without one
        self.token_types = None
        if token_types is not None:
            types = F.pad(token_types.gather(1, order), (0, new_tokens))
            if types.shape[1]:
                last_column = (begin - 1).clamp_min(0)
                last_type = types.gather(1, last_column)
                last_type = last_type.masked_fill(begin == 0, 0)
                types = torch.where(columns < begin, types, last_type)
            self.token_types = types[:, :width]

    def views(self, block_length: int | None, model_length: int | None) -> Iterator[View]:
        """The blocks to fill, in order: the masks inside the prompts, then the appended ones.

        The view of a row depends on that row alone. A row that fits the model is seen whole. A
        longer one is seen up to the end of the block, with as much of the text before it as fits.
        """
        # (B,) the length of every row, and whether the model sees it whole
        whole = self.lengths + self.new_tokens
        fits = torch.ones_like(whole, dtype=torch.bool)
        if model_length is not None:
            fits = whole <= model_length

        width = self.ids.shape[1]
        num_seen = width if bool(fits.all()) else model_length
        columns = torch.arange(num_seen, device=self.ids.device)

        for block, block_end in self.blocks(block_length):
            # (B,) the first column that is seen, and the one after the last
            end = torch.where(fits, whole, block_end)
            begin = torch.where(fits, 0, (end - num_seen).clamp_min(0))

            # (B, W') each. Columns after the end of a row are not present, whatever they show.
            index = begin.unsqueeze(1) + columns
            present = index < end.unsqueeze(1)
            index = index.clamp_max(width - 1)
            to_fill = block & self.free
            free = present & to_fill.gather(1, index)

            types = None
            if self.token_types is not None:
                types = self.token_types.gather(1, index)
            yield View(index, present, free, types)

    def blocks(self, block_length: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every block as its columns (B, W) bool and the column (B,) that follows it."""
        if block_length is None:
            yield self.real, self.lengths + self.new_tokens
            return

        # Masks that stood in the prompts
        inside = self.free & ~self.appended
        if inside.any():
            yield inside, self.lengths

        # The new tokens of every row, `block_length` at a time
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        for num_before in range(0, self.new_tokens, block_length):
            num_after = min(num_before + block_length, self.new_tokens)
            begin = self.lengths + num_before
            end = self.lengths + num_after
            after_begin = columns >= begin.unsqueeze(1)
            before_end = columns < end.unsqueeze(1)
            yield after_begin & before_end, end

    def num_blocks(self, block_length: int | None) -> int:
        """An upper limit of the number of blocks."""
        if block_length is None:
            return 1
        # One for the masks of the prompts, and the new tokens in blocks
        rounded_up = -(-self.new_tokens // block_length)
        return 1 + rounded_up

    def read(self, view: View) -> torch.LongTensor:
        """(B, W') the tokens of a view."""
        return self.ids.gather(1, view.index)

    def write(self, view: View, ids: torch.LongTensor) -> None:
        """Put the tokens `ids` (B, W') of a view back where it was free."""
        self.ids = replace_free(self.ids, view, ids)

    def write_log_probs(self, view: View, log_probs: torch.Tensor) -> None:
        """Put log-probabilities (B, W') of the tokens of a view where it was free."""
        self.log_probs = replace_free(self.log_probs.to(log_probs.dtype), view, log_probs)

    def filled(self, view: View) -> torch.Tensor:
        """(B, W) bool, the columns that were filled with a view and are still part of the text."""
        nothing = torch.zeros_like(self.free)
        return self.generated & replace_free(nothing, view, view.free)

    @property
    def masked(self) -> torch.Tensor:
        """(B, W) bool, the masks that are left."""
        return self.free & (self.ids == self.mask_token_id)

    @property
    def finished_lengths(self) -> torch.Tensor:
        """(B,) the number of tokens of a row before its first mask."""
        before_masks = self.masked.cumsum(-1) == 0
        return (self.real & before_masks).sum(-1)

    def beginnings(self, length: int) -> torch.LongTensor:
        """(B, length): the first tokens of every row.

        A row with fewer finished tokens than `length` is padded on the left.
        """
        # (B, length) columns that end with the finished tokens, negative where there are too few
        end = self.finished_lengths.clamp_max(length).unsqueeze(1)
        columns = torch.arange(length, device=self.ids.device)
        index = end - length + columns

        # Without a padding token any id does
        ids = self.ids.gather(1, index.clamp_min(0))
        padding = 0 if self.pad_token_id is None else self.pad_token_id
        return torch.where(index >= 0, ids, padding)

    def end_rows(self, eos_token_ids: list[int]) -> None:
        """Turn what was generated after the first end of text of a row into padding.

        Position 0, given tokens, and tokens that are still masked do not count as an end.
        """
        may_end = self.generated & (self.ids != self.mask_token_id)
        may_end[:, :1] = False
        is_end = may_end & is_any_of(self.ids, eos_token_ids)

        # (B, W) how many ends stand before a position
        is_end = is_end.long()
        ends_before = is_end.cumsum(-1) - is_end
        self.pad(self.generated & (ends_before > 0))

    def cut(self, lengths: torch.Tensor) -> None:
        """Turn what was or would be generated after the first `lengths` (B,) tokens into padding.

        Raises:
            ValueError: there is no padding token.
        """
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        is_after = columns >= lengths.unsqueeze(1)
        self.pad(self.generated & is_after)

    def pad(self, where: torch.Tensor) -> None:
        """Turn the positions `where` (B, W) bool into padding, which is filled no more."""
        if not where.any():
            return
        if self.pad_token_id is None:
            raise ValueError("The text ends early but there is no pad_token_id (nor eos_token_id): pass one.")
        self.ids = self.ids.masked_fill(where, self.pad_token_id)
        self.free = self.free & ~where
        self.generated = self.generated & ~where

    def draft(self, view: View, ids: torch.LongTensor) -> torch.LongTensor:
        """The first row of `ids` (B, W') from the beginning of the block of a view on: (n,)."""
        begin = first_true(view.free[0])
        end = int(view.present[0].sum())
        return ids[0, begin:end]

    def output(self) -> torch.LongTensor:
        """(B, P + new): the given columns with their masks filled, then the new ones."""
        # Padding of the user stays as it was given
        filled = self.in_given_order(self.ids)
        given = self.given_and_new
        return torch.where(given == self.mask_token_id, filled, given)

    def output_log_probs(self) -> torch.Tensor:
        """(B, P + new): the log-probabilities of what was generated, NaN elsewhere."""
        kept = torch.where(self.generated, self.log_probs, torch.nan)
        by_column = self.in_given_order(kept, missing=torch.nan)

        # Padding of the user has the columns of new tokens in `in_given_order`
        return torch.where(self.given_and_new == self.mask_token_id, by_column, torch.nan)

    @property
    def given_and_new(self) -> torch.LongTensor:
        """(B, P + new): the given ids, and a mask for every new token."""
        return F.pad(self.given, (0, self.new_tokens), value=self.mask_token_id)

    def in_given_order(self, values: torch.Tensor, missing: float = 0) -> torch.Tensor:
        """Values (B, W) of rows that are aligned left, in the columns of the user: (B, P + new)."""
        width = self.given.shape[1] + self.new_tokens
        values = F.pad(values, (0, width - values.shape[1]), value=missing)

        # (B, P) of the given columns, and (B, new) after the text of every row
        given = values.gather(1, self.aligned)
        columns = torch.arange(self.new_tokens, device=values.device)
        new_columns = self.lengths.unsqueeze(1) + columns
        new = values.gather(1, new_columns)
        return torch.cat([given, new], dim=1)


def is_any_of(ids: torch.LongTensor, tokens: list[int]) -> torch.Tensor:
    """Where `ids` (B, L) are one of some tokens, (B, L) bool. The tokens are not copied to a device."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in tokens:
        found = found | (ids == token)
    return found


def replace_free(values: torch.Tensor, view: View, replacement: torch.Tensor) -> torch.Tensor:
    """Values (B, W) of a canvas, with `replacement` (B, W') where a view is free."""
    # What is not free goes to an additional last column, which is cut off
    width = values.shape[1]
    target = torch.where(view.free, view.index, width)
    widened = F.pad(values, (0, 1))
    return widened.scatter(1, target, replacement)[:, :width]


def real_positions(
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
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

    check_zeros_and_ones(attention_mask)
    return attention_mask.to(input_ids.device) == 1


def check_zeros_and_ones(attention_mask: torch.Tensor) -> None:
    """Raise ValueError unless an attention mask is a tensor of 0 and 1."""
    if not torch.is_tensor(attention_mask):
        raise ValueError(f"attention_mask is a {type(attention_mask).__name__}, but a tensor is needed.")
    is_zero_or_one = (attention_mask == 0) | (attention_mask == 1)
    if not bool(is_zero_or_one.all()):
        raise ValueError(
            "attention_mask has values besides 0 and 1. Set it to 1 where input_ids are text and "
            "to 0 where they are padding."
        )


def first_true(flags: torch.Tensor) -> int:
    """Index of the first True of (N,), N if there is none."""
    before_first = flags.cumsum(-1) == 0
    return int(before_first.sum())
