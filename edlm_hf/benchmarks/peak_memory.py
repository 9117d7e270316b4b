"""The most memory that tensors take while a function runs, above what they take at its start.

On CUDA this is the allocator's own maximum. On the CPU it is the running sum of all allocations and
releases of torch's allocator, temporaries inside operators included, as torch.profiler records
them.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from edlm_hf.benchmarks.timing import finish_work


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Call the function and return the peak."""
    if device.type == "cuda":
        return peak_on_cuda(function, device)

    # Otherwise the profiler writes a line at every start and stop
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()

    # Bytes that each allocation adds and each release takes away, in the order of time
    events = recorded.profiler.kineto_results.events()
    of_memory = [event for event in events if event.name() == "[memory]"]
    of_memory.sort(key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in of_memory]

    # From 0, since a function that only releases memory has the peak 0
    running = np.cumsum([0, *changes], dtype=np.int64)
    return int(running.max())


def peak_on_cuda(function: Callable[[], object], device: torch.device) -> int:
    """Call the function and return the peak of CUDA's allocator, less what was allocated before."""
    # Work that still runs could hold memory that it is about to release
    finish_work(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)

    function()
    finish_work(device)
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes(device: torch.device) -> int:
    """The memory that is free on the device. Where the system does not tell, there is no limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63


__all__ = ["free_bytes", "peak_bytes"]
