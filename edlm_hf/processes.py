"""Work shared by the processes of `torchrun` or `accelerate launch`; a process alone does all of it."""

import gc
from itertools import chain, zip_longest
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object


def connected() -> PartialState:
    """The processes, connected when this is first called; an accelerator is the default device of each."""
    return PartialState(cpu=not torch.accelerator.is_available())


def place() -> tuple[int, int]:
    """(this process, how many there are)."""
    state = connected()
    return state.process_index, state.num_processes


def disconnect() -> None:
    """Part the processes, if they are connected, and end the threads behind that; all of them call this."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a trainer that is no longer needed, but part of a cycle, holds the connection
        torch.distributed.destroy_process_group()


def gather_turns(mine: list[Any]) -> list[Any]:
    """The items of all processes in order, in every process: item j of process r of P was number j P + r."""
    if place()[1] == 1:
        return mine
    missing = object()
    turns = zip_longest(*gather_object([mine]), fillvalue=missing)
    return [item for item in chain.from_iterable(turns) if item is not missing]


__all__ = ["connected", "disconnect", "gather_turns", "place"]
