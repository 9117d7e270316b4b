"""A part of the trainers: how a run goes on from a checkpoint."""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import load_fsdp_model
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import has_length
from transformers.utils import logging

from edlm_hf.training.folder_lock import FolderLock
from edlm_hf.training.saving import AVERAGE_OF_SHARDS
from edlm_hf.training.streams import EndlessRows
from edlm_hf.training.whole_checkpoints import (
    PRESENT_WEIGHTS,
    fault_of_checkpoint,
    named_checkpoint,
)

logger = logging.get_logger(__name__)


class ResumingMixin:
    """Runs that are alone in their folder and go on from whole checkpoints.

    Attributes:
        has_folder: whether the caller of `train` holds the lock of `output_dir` and has checked the
            checkpoint.
    """

    has_folder = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As usual, alone in `output_dir`, and from a whole checkpoint. True: from the newest.

        Raises:
            ValueError: another run works in the folder, the checkpoint lacks a part or is damaged,
                or there is none.
        """
        if self.has_folder:
            return super().train(resume_from_checkpoint, *args, **kwargs)

        # All processes check the checkpoint, so that all of them fail or none
        folder = self.args.output_dir
        has_average = bool(self.args.ema_decay)
        checkpoint = named_checkpoint(resume_from_checkpoint, folder, has_average)

        # The lock is of the run: one process holds it for all
        is_first_process = self.args.process_index == 0
        with FolderLock(folder) if is_first_process else nullcontext():
            return super().train(checkpoint, *args, **kwargs)

    def get_train_dataloader(self):
        """As usual. Rows without a length come pass after pass, so that those of a resumed run can be found again."""
        if self.train_dataset is None or has_length(self.train_dataset):
            return super().get_train_dataloader()

        # The Trainer makes the batches from its attribute
        rows = self.train_dataset
        self.train_dataset = EndlessRows(rows)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    def restore(self, checkpoint: str | Path) -> None:
        """Load the weights, their average and the state of a run without training on.

        With `load_best_model_at_end` the weights are those of the best checkpoint.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load the average into its place and the present weights into the model.

        Shards of FSDP have both under names of their own. Else the Trainer loads the average, which
        is the model of the checkpoint, and the present weights stand in a file beside it.
        """
        # Shards of the average come first, since both are loaded into the same weights
        folder = Path(resume_from_checkpoint)
        shards = folder.glob(f"{FSDP_MODEL_NAME}_{AVERAGE_OF_SHARDS}*")
        if self.is_fsdp_enabled and any(shards):
            self.load_average_of_shards(folder, model or self.model)

        # The model is now the average where a file has the present weights
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (folder / PRESENT_WEIGHTS).exists():
            self.average.restart(self.model)
            self.load_present_weights(folder / PRESENT_WEIGHTS)

    def load_average_of_shards(self, folder: Path, model: torch.nn.Module) -> None:
        """Load the second model of a sharded checkpoint as the average."""
        plugin = self.accelerator.state.fsdp_plugin
        load_fsdp_model(plugin, self.accelerator, model, folder, AVERAGE_OF_SHARDS)
        self.average.restart(self.model)

    @torch.no_grad()
    def load_present_weights(self, file: Path) -> None:
        """Copy the present weights of a file into the model."""
        stored = load_file(file)
        for name, weight in self.present_weights().items():
            weight.copy_(stored[name])

    def _load_best_model(self):
        """As usual, unless the best checkpoint is damaged. Its weights are the average as well."""
        # A checkpoint of the model alone has no parts to check
        best = self.state.best_model_checkpoint
        if not self.args.save_only_model:
            fault = fault_of_checkpoint(best, has_average=bool(self.args.ema_decay))
            if fault is not None:
                consequence = "the weights of the last step are kept"
                logger.warning(f"The best checkpoint is not whole ({fault}): {consequence}.")
                return

        super()._load_best_model()
        self.average.restart(self.model)


__all__ = ["ResumingMixin"]
