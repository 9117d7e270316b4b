"""Positions of a text: a mask that the host reads from its device once.

The number of rows of `x[mask]` has to be known on the host, which waits for the device each time.
A step names the same few positions many times, so their indices are kept.

Shapes: R rows, L positions, N of these.
"""

import functools

import torch

from .devices import send


class Positions:
    """The N True entries of a mask, row by row and from left to right.

    Args:
        flags: (R, L) bool, the mask on the device of the text.
        on_host: the same on the CPU. Unless given it is read from `flags` when it is needed.
    """

    def __init__(self, flags: torch.Tensor, on_host: torch.Tensor | None = None):
        self.flags = flags
        if on_host is not None:
            self.on_host = on_host

    @classmethod
    def of(cls, flags: "torch.Tensor | Positions") -> "Positions":
        """The positions of a mask (R, L) bool. Positions stay as they are.

        They may come from another copy of this file: a model and the engine that samples it can each
        have brought their code.
        """
        return cls(flags) if isinstance(flags, torch.Tensor) else flags

    @classmethod
    def known(cls, on_host: torch.Tensor, device: torch.device) -> "Positions":
        """The positions of a mask (R, L) bool on the CPU, for a text on `device`."""
        return cls(send(on_host, device), on_host)

    @property
    def is_read(self) -> bool:
        """Whether the host knows the mask, which is always so on the CPU."""
        return "on_host" in vars(self) or self.flags.device.type == "cpu"

    @functools.cached_property
    def on_host(self) -> torch.Tensor:
        """(R, L) bool on the CPU."""
        return self.flags.cpu()

    @functools.cached_property
    def counts(self) -> torch.LongTensor:
        """(R,) on the CPU, the number of positions of every row."""
        return self.on_host.sum(-1)

    @functools.cached_property
    def index(self) -> torch.LongTensor:
        """(N,) on the device, r L + i of position i of row r."""
        # On the CPU, since `nonzero` makes the host wait for a device
        index = self.on_host.flatten().nonzero().squeeze(-1)
        return self.sent(index)

    @property
    def row_of(self) -> torch.LongTensor:
        """(N,) on the device, the row of every position."""
        return self.index // self.flags.shape[1]

    def __len__(self) -> int:
        return len(self.index)

    def sent(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU on the device of the text."""
        return send(x, self.flags.device)

    def numbers_of(self, some: "Positions") -> torch.LongTensor:
        """The numbers (n,) among these N of `some` of them."""
        if some is self:
            return torch.arange(len(self), device=self.flags.device)

        # (N,) bool on the CPU, which of these N are among them
        is_some = some.on_host[self.on_host]
        return self.sent(is_some.nonzero().squeeze(-1))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The values (N, ...) that stand here, of values (R, L, ...)."""
        return values.flatten(0, 1)[self.index]

    def put(self, base: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """A copy of `base` (R, L, ...) with the values (N, ...) here."""
        # (R L, ...) and back
        filled = base.flatten(0, 1).index_copy(0, self.index, values)
        return filled.view(base.shape)


def read_together(*sets: Positions) -> None:
    """Read the masks of several positions of one text from its device, all at once."""
    copies = torch.stack([positions.flags for positions in sets]).cpu()
    for positions, on_host in zip(sets, copies, strict=True):
        positions.on_host = on_host
