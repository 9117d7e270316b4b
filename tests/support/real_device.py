"""A device of this machine, named by EDLM_DEVICE, with what fake_device.py has: the tests of devices run on either.

EDLM_DEVICE=cuda pytest tests/devices   # as `make gpu` does
"""

import contextlib
import os

import torch
from torch import nn

VARIABLE = "EDLM_DEVICE"
DEVICE = os.environ.get(VARIABLE)

# The rules of the device are its own, and so is its attention
PlainAttention = contextlib.nullcontext
no_float64 = contextlib.nullcontext


def reason_to_skip() -> str | None:
    """Why the device that was asked for cannot be used, None if it can."""
    if DEVICE not in ("cuda", "mps", "cpu"):
        return f"{VARIABLE} is {DEVICE!r}, but it must be cuda, mps or cpu (which tries the tests themselves)"
    if not torch.get_device_module(DEVICE).is_available():
        return f"torch {torch.__version__} finds no {DEVICE} device here"
    return None


def on_device(x: torch.Tensor, index: int = 0) -> torch.Tensor:
    """A copy of a tensor on the device."""
    return x.detach().clone().to(torch.device(DEVICE, index))


def move(module: nn.Module, index: int = 0) -> nn.Module:
    """Put a module onto the device."""
    return module.to(torch.device(DEVICE, index))
