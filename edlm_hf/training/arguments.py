"""The options that all trainers of this package share."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from edlm_hf.hidden_secrets import hide_in_values, is_secret_name
from edlm_hf.training.refused_options import check_fields


@dataclass
class EDLMTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with options for averaging, attention and Muon.

    Raises:
        ValueError: an option would have no effect (`edlm_hf.training.refused_options`), the number
            of steps or epochs is not allowed, options of a scheduler or of checkpointing are no
            dictionary, or `muon` is combined with FSDP.
    """

    ema_decay: float = field(
        default=0.9999,
        metadata={
            "help": "Decay of the average of the weights that is evaluated and saved; 0: no average.",
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "eager, sdpa, flash_attention_2, ...: eager is the fastest on some processors.",
        },
    )
    muon: bool = field(
        default=False,
        metadata={
            "help": "Muon for the matrices of the blocks, AdamW for the rest, in place of `optim`.",
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_fields(self)
        self.check_duration()
        self.check_dictionaries()
        if self.muon and self.fsdp:
            problem = "Muon needs whole matrices, which FSDP splits over processes."
            raise ValueError(f"{problem} Use DDP, or muon=False.")

    def check_duration(self) -> None:
        """Raise ValueError unless the run has a positive number of steps, or else of epochs."""
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(
                f"max_steps is {self.max_steps}, but it must be at least 1. Leave it out to train for num_train_epochs."
            )

        # Infinity has no number of steps, and a comparison with NaN is False
        epochs = self.num_train_epochs
        if self.max_steps == -1 and not 0 < epochs < math.inf:
            raise ValueError(f"num_train_epochs is {epochs}, but it must be a positive number.")

    def check_dictionaries(self) -> None:
        """Raise ValueError unless options that are passed on by their names are dictionaries."""
        for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            value = getattr(self, name, None)  # the names differ between versions of transformers
            if value and not isinstance(value, dict):
                raise ValueError(f'{name} is {value!r}, but it must be names with values, such as {{"num_cycles": 2}}.')

    def __getstate__(self) -> dict:
        """The fields for a pickle or a copy, such as training_args.bin, without any secret."""
        # A field with a secret becomes None, and secrets inside other values are hidden
        state = {}
        for name, value in vars(self).items():
            if is_secret_name(name):
                value = None
            elif isinstance(value, (str, dict, list)):
                value = hide_in_values(value)
            state[name] = value
        return state


__all__ = ["EDLMTrainingArguments"]
