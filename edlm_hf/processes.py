"""Work shared by the processes of `torchrun` or `accelerate launch`.

A process alone does all of it.
"""

import gc
from itertools import chain, zip_longest
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object


def connected() -> PartialState:
    """Return the state of the processes, which the first call connects.

    An accelerator, if there is one, then is the default device of each.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def rank_and_world_size() -> tuple[int, int]:
    """Return the index of this process, and the number of processes."""
    state = connected()
    return state.process_index, state.num_processes


def disconnect() -> None:
    """Part the processes if they are connected, and end the threads of the connection.

    All of them call this.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A trainer that nobody needs, but that is part of a cycle, still holds the connection
        gc.collect()
        torch.distributed.destroy_process_group()


def gather_turns(mine: list[Any]) -> list[Any]:
    """Return the items of all P processes in order, in every process.

    Item j of process r is number j P + r.
    """
    if rank_and_world_size()[1] == 1:
        return mine

    # Processes may differ by one item
    missing = object()
    of_processes = gather_object([mine])
    turns = zip_longest(*of_processes, fillvalue=missing)
    return [item for item in chain.from_iterable(turns) if item is not missing]


__all__ = ["connected", "disconnect", "gather_turns", "rank_and_world_size"]
