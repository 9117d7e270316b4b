"""An exponential moving average of the weights as a Trainer callback."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainerCallback


class ExponentialMovingAverage(TrainerCallback):
    """Average s <- d s + (1 - d) w of the weights w after every optimizer step n.

    d = min(decay, (1 + n) / (10 + n)). This warm-up (published with MDLM) lets the average forget
    the initialisation. n is the global step, so that a checkpoint needs the average alone.

    Args:
        decay: d after the warm-up, in [0, 1).

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            allowed = "it must lie in [0, 1); 0 switches averaging off"
            raise ValueError(f"ema_decay is {decay}, but {allowed}.")
        self.decay = decay
        self.shadow: list[torch.Tensor] | None = None

    def restart(self, model: nn.Module) -> None:
        """Take the present weights of `model` as the average."""
        self.shadow = [weight.detach().clone() for weight in trainable(model)]

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # A resumed run has loaded the average. One that begins anew takes the first weights.
        if self.shadow is None or state.global_step == 0:
            self.restart(model)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        # d = min(decay, (1 + n) / (10 + n))
        step = state.global_step
        warm_up = (1 + step) / (10 + step)
        decay = min(self.decay, warm_up)

        # s + (1 - d) (w - s), for all weights in a few kernels
        present = [weight.detach() for weight in trainable(model)]
        torch._foreach_lerp_(self.shadow, present, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average in place of the present weights, which come back afterwards."""
        if self.shadow is None:
            yield
            return

        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the present weights."""
        # In place, so that optimizers and FSDP keep their tensors. One weight is copied at a time.
        for average, weight in zip(self.shadow, trainable(model), strict=True):
            present = weight.detach().clone()
            weight.copy_(average)
            average.copy_(present)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained, in the order of the model."""
    return [weight for weight in model.parameters() if weight.requires_grad]


__all__ = ["ExponentialMovingAverage"]
