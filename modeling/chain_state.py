"""The state x_t of a chain: texts with masks, which its steps fill."""

import functools
from dataclasses import dataclass

import torch

from .devices import send
from .masked_diffusion import NoiseSchedule


@dataclass
class State:
    """x_t: B rows of text with masks, as a chain of steps fills them.

    Args:
        ids: (B, L) token ids.
        free: (B, L) bool, the positions that the chain fills.
        present: (B, L) bool, False where a row is shorter.
        mask_token_id: of the model.
        schedule: relates times to shares of masks.
        token_types: (B, L), for networks that take them.
        fillable: (B, L) bool, all that does not belong to the prompt, other blocks included.
        log_probs: (B, L) log p_theta of the tokens as they were drawn, or None where nobody asks.
    """

    ids: torch.LongTensor
    free: torch.Tensor
    present: torch.Tensor
    mask_token_id: int
    schedule: NoiseSchedule
    token_types: torch.LongTensor | None = None
    fillable: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None

    @property
    def masked(self) -> torch.Tensor:
        """(B, L) bool, M(x_t): the free positions that still hold the mask."""
        return self.free & (self.ids == self.mask_token_id)

    @functools.cached_property
    def is_full(self) -> torch.Tensor:
        """(B,) bool on the CPU, the rows without padding."""
        return self.present.all(-1).cpu()

    def attention_mask(self, rows: torch.Tensor) -> torch.LongTensor | None:
        """The attention mask (R, L) of some `rows` (R,), which are numbers on the CPU.

        It is None where nothing is padding, which lets networks take faster kernels.
        """
        if bool(self.is_full[rows].all()):
            return None
        return self.present[send(rows, self.present.device)].long()

    def time_of(self, left: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """The times (B,) at which a row of `total` masks is expected to have `left` of them."""
        # 1 - alpha_t = left / total
        share = left.double() / total.clamp_min(1).double()
        return self.schedule.time(share)

    def write(self, rows: torch.Tensor, revealed: torch.Tensor, clean: torch.LongTensor) -> None:
        """Put the tokens `clean` (R, L) at the positions `revealed` (R, L) bool of `rows` (R,)."""
        written = torch.where(revealed, clean, self.ids[rows])
        self.ids = self.ids.index_copy(0, rows, written)

    def restore_log_probs(
        self,
        before: torch.Tensor | None,
        rows: torch.Tensor,
        revealed: torch.Tensor,
    ) -> None:
        """Take back the log-probabilities `before` (B, L) where a drawn token was not revealed.

        `revealed` (R, L) bool is the reveal set of `rows` (R,).
        """
        if before is not None:
            kept = torch.where(revealed, self.log_probs[rows], before[rows])
            self.log_probs = before.to(kept.dtype).index_copy(0, rows, kept)

    def mask_again(self, where: torch.Tensor) -> None:
        """Put the mask at the positions `where` (B, L) bool."""
        where = send(where, self.ids.device)
        self.ids = self.ids.masked_fill(where, self.mask_token_id)
