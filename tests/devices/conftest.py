"""A device that is not the CPU, by the rules of CUDA and of MPS.

The device is a fake (tests/support/fake_device.py): it needs no hardware, and refuses what hardware refuses. With
EDLM_DEVICE=cuda it is one of this machine (tests/support/real_device.py).
"""

import contextlib

import pytest
import real_device
import torch
from torch.utils import backend_registration

# Since torch 2.10
CAN_BE_FAKED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.fixture(scope="module")
def accelerator():
    """The module of the device: the fake one, which changes the whole process, or a real one if that is asked for."""
    if real_device.DEVICE is None and not CAN_BE_FAKED:
        pytest.skip(f"torch {torch.__version__} takes no device written in Python")
    elif real_device.DEVICE is None:
        import fake_device as module
    else:
        module = real_device
        reason = real_device.reason_to_skip()
        if reason is not None:
            pytest.skip(reason)

    with module.PlainAttention():
        yield module


@pytest.fixture
def fake(accelerator):
    """The fake device, for tests of itself."""
    if accelerator is real_device:
        pytest.skip("The fake device is tested without a real one")
    return accelerator


@pytest.fixture(params=["cuda", "mps"])
def rules(request, accelerator):
    """The rules of a device: without float64 (mps) or with it."""
    if accelerator is real_device and (request.param == "mps") != (accelerator.DEVICE == "mps"):
        pytest.skip("A device of this machine has rules of its own")
    with accelerator.no_float64() if request.param == "mps" else contextlib.nullcontext():
        yield request.param
