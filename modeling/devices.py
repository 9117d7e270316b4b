"""What devices cannot do: some have no float64, and one copies only while the host waits."""

import torch

# Types of devices without float64
WITHOUT_FLOAT64 = {"mps"}


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 may stand on a device."""
    return device.type not in WITHOUT_FLOAT64


def double_where_possible(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64 if its device has it, else unchanged."""
    return x.double() if has_float64(x.device) else x


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on a device. The host does not wait for a copy to there, except on MPS: `x` may be freed before."""
    from_host = x.device.type == "cpu"
    return x.to(device, non_blocking=from_host and device.type != "mps")
