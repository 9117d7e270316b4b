"""Weights that a trainer freezes, which a later trainer in the same process can train again."""

from torch import nn

MARK = "frozen_by_trainer"


def freeze(module: nn.Module) -> None:
    """Freeze the weights of a module. Those that were trainable are marked."""
    for weight in module.parameters():
        if weight.requires_grad:
            weight.requires_grad_(False)
            setattr(weight, MARK, True)


def thaw(module: nn.Module) -> None:
    """Make the marked weights of a module trainable again. What a user froze stays frozen."""
    for weight in module.parameters():
        if getattr(weight, MARK, False):
            weight.requires_grad_(True)
            delattr(weight, MARK)


__all__ = ["freeze", "thaw"]
