"""Eval mode for as long as a model generates or scores: no dropout, and no random numbers but those of the caller."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from torch import nn

LOCK = threading.Lock()
# id(module) -> the module, how many calls need it in eval mode, and the mode that it gets back
HELD: dict[int, tuple[nn.Module, int, bool]] = {}


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Keep all modules of the models in eval mode. The last call that needs a module gives it its mode back.

    Calls may nest and come from several threads, also for models that share modules. A thread that trains a model at
    the same time finds it in eval mode.
    """
    modules = list({id(module): module for model in models for module in model.modules()}.values())
    with LOCK:
        for module in modules:
            _, calls, mode = HELD.get(id(module), (module, 0, module.training))
            HELD[id(module)] = module, calls + 1, mode
        for model in models:
            if any(module.training for module in model.modules()):
                model.eval()
    try:
        yield
    finally:
        with LOCK:
            for module in modules:  # parents before their children
                _, calls, mode = HELD.pop(id(module))
                if calls > 1:
                    HELD[id(module)] = module, calls - 1, mode
                    mode = False
                set_mode(module, mode)


def in_eval_mode(method: Callable) -> Callable:
    """A method of a model that runs while the model is kept in eval mode."""

    @wraps(method)
    def run(self, *args, **kwargs):
        with evaluating(self):
            return method(self, *args, **kwargs)

    return run


def set_mode(module: nn.Module, mode: bool) -> None:
    """Give one module its mode. A class with a `train` of its own may have more to switch than this module."""
    if module.training == mode:
        return
    if type(module).train is nn.Module.train:
        module.training = mode
    else:
        module.train(mode)


__all__ = ["evaluating", "in_eval_mode"]
