"""The options that all trainers of this package share."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from edlm_hf.hidden_secrets import hide_in_values, is_secret_name
from edlm_hf.training.refused_options import check_fields


@dataclass
class EDLMTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with options for averaging, attention and Muon.

    Raises:
        ValueError: an option would have no effect (`edlm_hf.training.refused_options`), or `muon`
            is combined with FSDP.
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
        if self.muon and self.fsdp:
            problem = "Muon needs whole matrices, which FSDP splits over processes."
            raise ValueError(f"{problem} Use DDP, or muon=False.")

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
