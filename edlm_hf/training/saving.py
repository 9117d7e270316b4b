"""A part of the trainers: what is saved and pushed.

Every folder holds the averaged weights as its model. A checkpoint has the present weights, from
which training goes on, beside them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import save_fsdp_model
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress

from edlm_hf.card_signatures import is_untouched
from edlm_hf.hub import write_better_card
from edlm_hf.pushing import push_folder
from edlm_hf.training.pushing import push_checkpoint, push_in_background
from edlm_hf.training.whole_checkpoints import MANIFEST, PRESENT_WEIGHTS, write_manifest

# accelerate's index of a second sharded model. The present weights have index 0.
AVERAGE_OF_SHARDS = 1


class SavingMixin:
    """Models, checkpoints and repositories.

    Attributes:
        average: an `ExponentialMovingAverage`.
    """

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights in place of the present ones, to evaluate, save or generate."""
        with self.average.applied(self.model):
            yield

    def present_weights(self) -> dict[str, torch.Tensor]:
        """The weights that are trained, by name."""
        named = self.model.named_parameters()
        return {name: weight.detach() for name, weight in named if weight.requires_grad}

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the averaged weights, as `save_pretrained` writes them."""
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        """As usual. An adapter gets our card in place of PEFT's template."""
        folder = Path(output_dir or self.args.output_dir)
        is_adapter = hasattr(self.model, "peft_config")

        # PEFT writes into a card that is there. One of ours would then pass for edited
        card = folder / "README.md"
        kept = None
        if self.args.should_save and is_adapter and card.exists():
            kept = card.read_text(encoding="utf-8")

        complaints = ("Could not find a config file", "Unable to fetch remote file .* config.json")
        with warnings.catch_warnings():
            # PEFT looks for the base of an adapter on the Hub, also where it ships with this package
            for complaint in complaints:
                warnings.filterwarnings("ignore", message=f"{complaint} in edlm-")
            super()._save(output_dir, state_dict)

        if kept is not None and is_untouched(kept):
            card.write_text(kept, encoding="utf-8")
        if self.args.should_save:
            facts = getattr(self.model, "card_facts", None) if is_adapter else None
            write_better_card(folder, facts, self.model.config)

    def create_model_card(self, *args, **kwargs):
        """Do nothing: `save_model` writes the card of the model, which a push keeps."""

    def _save_checkpoint(self, model, trial):
        """As usual, with a manifest as the last file, which makes the checkpoint complete.

        A checkpoint that is written a second time is incomplete until then.
        """
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial), name)

        # Without its last files the folder does not pass for complete while it is written
        if self.args.should_save:
            for last_file in (MANIFEST, TRAINER_STATE_NAME):
                (folder / last_file).unlink(missing_ok=True)

        super()._save_checkpoint(model, trial)
        if self.args.should_save and folder.exists():
            write_manifest(folder)

    def _save_optimizer_and_scheduler(self, output_dir):
        """As usual, and the present weights, or the average where those are saved by FSDP."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average.shadow is None:
            return

        # FSDP saves shards of the model as it is, so that the average needs shards of its own
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            with self.averaged_weights():
                save_fsdp_model(plugin, self.accelerator, self.model, output_dir, AVERAGE_OF_SHARDS)
        elif self.args.should_save:
            save_file(self.present_weights(), Path(output_dir, PRESENT_WEIGHTS))

    def _save_rng_state(self, output_dir):
        """As usual, by all processes before the first one writes the last files."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def push_to_hub(
        self,
        commit_message="End of training",
        blocking=True,
        token=None,
        revision=None,
        **kwargs,
    ):
        """As `Trainer.push_to_hub`, for the files of a model repository alone (`push_folder`)."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # args.push_to_hub is not set
            private = {"private": kwargs["private"]} if "private" in kwargs else {}
            self.init_hf_repo(token, **private)

        # All processes take part in saving, since FSDP gathers the weights
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None

        self._finish_current_push()
        push = push_folder if blocking else push_in_background
        return push(
            self.args.output_dir,
            self.hub_model_id,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            tags=kwargs.get("tags"),
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        """As usual (`hub_strategy`), without `training_args.bin` and other files of the run."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return

        # A push that still goes on has precedence
        pushes = self.push_in_progress
        is_busy = pushes is not None and not pushes.is_done()
        if is_busy and not self.args.hub_always_push:
            return

        # Where the whole checkpoint goes. With the other strategies the model alone is pushed.
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        path_in_repo = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }
        job = push_checkpoint(
            checkpoint_folder,
            self.hub_model_id,
            path_in_repo.get(strategy),
            commit_message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
        )

        # The Trainer waits for all of them at the end
        earlier_jobs = pushes.jobs if is_busy else []
        self.push_in_progress = PushInProgress([*earlier_jobs, job])


__all__ = ["AVERAGE_OF_SHARDS", "SavingMixin"]
