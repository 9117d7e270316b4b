"""Rows without a length, such as those of a stream: pass after pass."""

import itertools
from collections.abc import Iterator

from torch.utils.data import IterableDataset


class EndlessRows(IterableDataset):
    """The rows of an iterable dataset, again and again.

    For `Trainer`, rows without a length are one epoch of `max_steps` steps, of which a resumed run leaves out those
    that it has seen. A single pass may have fewer rows than that: the run would then go on with the wrong ones.

    Args:
        rows: an iterable dataset. Where it is shuffled, every pass has an order of its own (`set_epoch`).
    """

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self) -> Iterator:
        for number in itertools.count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(number)

            # A pass without rows is the end, or this would never return
            is_empty = True
            for row in self.rows:
                is_empty = False
                yield row
            if is_empty:
                return


__all__ = ["EndlessRows"]
