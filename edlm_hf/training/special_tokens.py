"""The special tokens of a model during its training."""

from torch import nn
from transformers import TrainerCallback


class SpecialTokens(TrainerCallback):
    """Keeps the start, end and padding tokens that the configurations of a model name.

    They decide which tokens count. The Trainer would replace them by the tokenizer's when it
    begins, after the collator has read them: rows would be trained by some, and evaluated and saved
    with others.
    """

    NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")

    def read(self, model: nn.Module) -> None:
        """Remember the tokens of a model."""
        generation_config = getattr(model, "generation_config", None)

        # The configurations that the Trainer would change, both of them
        self.kept = []
        for config in (model.config.get_text_config(), generation_config):
            for name in self.NAMES:
                token = getattr(config, name, None)
                self.kept.append((config, name, token))

    def on_train_begin(self, *args, **kwargs):
        for config, name, token in self.kept:
            if getattr(config, name, None) != token:
                setattr(config, name, token)


__all__ = ["SpecialTokens"]
