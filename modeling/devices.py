"""What devices cannot do: some have no float64."""

import torch

# Types of devices without float64
WITHOUT_FLOAT64 = {"mps"}


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 may stand on a device."""
    return device.type not in WITHOUT_FLOAT64


def double_where_possible(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64 if its device has it, else unchanged."""
    return x.double() if has_float64(x.device) else x
