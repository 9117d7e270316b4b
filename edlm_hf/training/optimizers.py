"""Muon for the matrices of the transformer blocks and AdamW for the rest, as one optimiser."""

from collections.abc import Callable

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the plain linear layers of the blocks, `torch.optim.AdamW` on the rest.

    Muon replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns
    (Jordan et al., 2024). Its step is scaled to the root mean square of AdamW's (arXiv 2502.16982),
    so that one learning rate serves both. Modulations that start at zero, embeddings, norms, biases
    and heads stay with AdamW. Both parts work on the state and the parameter groups of this object,
    so schedulers, checkpoints and `accelerate` see one optimiser.

    Args:
        model: a `PreTrainedModel`. Its blocks are the modules named by `_no_split_modules`.
        lr: the learning rate of both.
        weight_decay: of both.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: one of the two has no trainable parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ):
        matrices, others = split_parameters(model)

        common = {"lr": lr, "weight_decay": weight_decay}
        self.parts = (
            torch.optim.Muon(matrices, **common, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **common, betas=betas, eps=eps),
        )
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        self.share_state()

    def share_state(self) -> None:
        """Let both parts work on the state and on the parameter groups of this object."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state = self.state
            part.param_groups = [group]

    def __setstate__(self, state):
        super().__setstate__(state)
        self.share_state()

    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for part in self.parts:
            part.step()
        return loss


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divide the trainable parameters into the matrices of the blocks and all others.

    Raises:
        ValueError: there are none of one kind.
    """
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]

    # Subclasses of Linear are left out: they start at zero. A block may stand in another one.
    layers = [layer for block in blocks for layer in block.modules() if type(layer) is nn.Linear]
    weights = [layer.weight for layer in layers if layer.weight.requires_grad]
    matrices = {id(weight): weight for weight in weights}
    others = [x for x in model.parameters() if x.requires_grad and id(x) not in matrices]

    if not matrices or not others:
        named = ", ".join(sorted(names)) or "none are named"
        raise ValueError(
            f"Muon needs trainable linear layers in the blocks ({named}) and other parameters "
            f"beside them; {type(model).__name__} has {len(matrices)} and {len(others)}. Set "
            "muon=False."
        )
    return list(matrices.values()), others


__all__ = ["MuonAdamW"]
