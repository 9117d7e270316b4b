"""A part of the trainers: the rows of a step as one batch, however they are divided.

Shapes: B rows of one batch, L positions.
"""

from collections.abc import Iterator, Sequence

import torch

from edlm_hf.modeling.devices import has_float64
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.row_noise import Shape, row_uniforms

# The second part of the keys of noise, after the seed
TRAINING = 0
EVALUATION = 1


class GlobalBatchMixin:
    """The global batch: the rows of a step in all processes and accumulation steps.

    The noise of a row is a function of the seed, the step, the index of the row in the global batch
    and the position. The loss is averaged over the global batch.

    Attributes:
        rows_per_step: rows of the present global batch.
        items_per_process: the divisor of the sum of losses over the present step of this process.
    """

    rows_per_step = 0
    items_per_process = 0.0

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Flags of the items that the loss averages over, (B, L) -> (B, n) bool: here tokens."""
        return labels != CONTEXT_LABEL

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step in this process. Each knows the index of its first row."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.number_rows(batches, device)
        return batches, num_items

    def number_rows(self, batches: list[dict], device: torch.device) -> None:
        """Add `first_row` to the batches of a step, and count its rows and items.

        Rows of the global batch stand in the order in which samplers deal them out: by accumulation
        step, then by process.

        Raises:
            ValueError: nothing counts in the whole step.
        """
        # 1. Rows and items of every batch, (steps, 2), then (processes, steps) each
        accumulation_steps = self.args.gradient_accumulation_steps
        sizes = torch.zeros(accumulation_steps, 2, dtype=torch.long, device="cpu")
        for i, batch in enumerate(batches):
            sizes[i, 0] = len(batch["labels"])
            sizes[i, 1] = self.items(batch["labels"]).sum()
        sizes = sizes.to(device).unsqueeze(0)
        rows, items = self.accelerator.gather(sizes).cpu().unbind(-1)

        if not items.any():
            raise ValueError(
                f"Nothing counts in step {self.state.global_step + 1}: its {rows.sum()} rows are "
                "padding, special tokens and tokens that their labels (or masks) make context. "
                "Leave such rows out."
            )

        # 2. The rows before every batch, (steps, processes): a sum that leaves out the batch itself
        counts = rows.T
        up_to = counts.flatten().cumsum(0).view(counts.shape)
        before = up_to - counts
        for i, batch in enumerate(batches):
            batch["first_row"] = int(before[i, self.args.process_index])
        self.rows_per_step = int(rows.sum())

        # 3. Gradients are averaged over processes: each divides its sum by the mean of their items
        num_processes = len(items)
        self.items_per_process = float(items.sum()) / num_processes
        if not self.args.average_tokens_across_devices:
            # At least 1, since a process may have nothing that counts
            own_items = float(items[self.args.process_index].sum())
            self.items_per_process = max(1.0, own_items)

    def noise(self, *shapes: Shape, rows: slice) -> Iterator[torch.Tensor]:
        """Uniforms of the present step: one for the step, then (rows, *shape) for every shape.

        Args:
            shapes: of the numbers of one row.
            rows: of the global batch.
        """
        # A resumed run has the same step, and so the same noise
        key = (self.args.seed, TRAINING, self.state.global_step)
        numbers = range(self.rows_per_step)[rows]
        return self.uniforms(key, numbers, *shapes)

    def uniforms(
        self,
        key: Sequence[int],
        rows: Sequence[int],
        *shapes: Shape,
    ) -> Iterator[torch.Tensor]:
        """`row_uniforms` on the device, in float64, or float32 where it has no other (MPS)."""
        dtype = torch.float64 if has_float64(self.args.device) else torch.float32
        for numbers in row_uniforms(key, rows, *shapes):
            yield numbers.to(dtype).to(self.args.device)


__all__ = ["EVALUATION", "GlobalBatchMixin"]
