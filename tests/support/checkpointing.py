"""Activations that are computed again: what transformers calls that, which since version 5.23 is another word."""

from transformers import PreTrainedModel

WORD = "activation" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient"

# The training argument.
CHECKPOINTING = f"{WORD}_checkpointing"


def switch_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Switch the checkpointing of activations on or off."""
    action = "enable" if on else "disable"
    getattr(model, f"{CHECKPOINTING}_{action}")()
