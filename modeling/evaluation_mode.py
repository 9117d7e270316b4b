"""Eval mode for as long as a model generates or scores: no dropout and no random numbers of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

from torch import nn


@dataclass
class EvalHold:
    """A module that calls keep in eval mode.

    Args:
        module: held here so that no other module can get its id meanwhile.
        num_calls: the calls that need it in eval mode.
        training: the mode that the last of them gives back.
    """

    module: nn.Module
    num_calls: int
    training: bool


LOCK = threading.Lock()
HOLDS: dict[int, EvalHold] = {}  # by id(module)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Keep all modules of the models in eval mode.

    The last call that needs a module gives it its mode back. Calls may nest and come from several
    threads, also for models that share modules. A thread that trains a model at the same time finds
    it in eval mode.
    """
    # Every module once by its id, parents before their children
    modules = {}
    for model in models:
        modules.update({id(module): module for module in model.modules()})

    # 1. Hold them. The first call that holds a module notes its mode.
    with LOCK:
        for key, module in modules.items():
            hold = HOLDS.setdefault(key, EvalHold(module, 0, module.training))
            hold.num_calls += 1
        for model in models:
            if any(module.training for module in model.modules()):
                model.eval()

    # 2. Run the call, then give back the modes of modules that nobody else holds
    try:
        yield
    finally:
        with LOCK:
            for key in modules:
                release(HOLDS[key])


def release(hold: EvalHold) -> None:
    """End one call's hold on a module."""
    hold.num_calls -= 1
    is_last = hold.num_calls == 0
    if is_last:
        del HOLDS[id(hold.module)]
    set_mode(hold.module, hold.training and is_last)


def in_eval_mode(method: Callable) -> Callable:
    """Let a method of a model run while the model is kept in eval mode."""

    @wraps(method)
    def method_in_eval_mode(self, *args, **kwargs):
        with evaluating(self):
            return method(self, *args, **kwargs)

    return method_in_eval_mode


def set_mode(module: nn.Module, training: bool) -> None:
    """Give one module its mode, by its `train` method where the class has one of its own.

    Such a class may have more to switch than this module.
    """
    if module.training == training:
        return
    if type(module).train is nn.Module.train:
        module.training = training
    else:
        module.train(training)
