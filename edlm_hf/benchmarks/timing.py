"""Seconds on a device that may work in the background."""

import time
from collections.abc import Callable

import torch


def finish_work(device: torch.device) -> None:
    """Wait until a GPU has done everything that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_now(device: torch.device) -> float:
    """The time, when all work of the device is finished."""
    finish_work(device)
    return time.perf_counter()


class Stopwatch:
    """A function, and the seconds spent in it.

    On CUDA they are measured by events, so that nothing waits for the device meanwhile.
    """

    def __init__(self, function: Callable, device: torch.device):
        self.function = function
        self.device = device
        self.spans = []

    def __call__(self, *args, **kwargs):
        # Only two marks here. The seconds between them are counted when they are asked for
        began = self.mark()
        result = self.function(*args, **kwargs)
        ended = self.mark()
        self.spans.append((began, ended))
        return result

    def mark(self):
        """A moment: seconds on a CPU, an event on CUDA."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take_seconds(self) -> float:
        """Return the seconds since they were last taken."""
        # Events have no time before the device has reached them
        finish_work(self.device)
        if self.device.type == "cuda":
            # elapsed_time is in milliseconds
            total = sum(began.elapsed_time(ended) / 1000 for began, ended in self.spans)
        else:
            total = sum(ended - began for began, ended in self.spans)

        self.spans.clear()
        return total


__all__ = ["Stopwatch", "finish_work", "seconds_now"]
