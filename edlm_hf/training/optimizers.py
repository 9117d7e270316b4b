"""Muon for the matrices of the transformer blocks and AdamW for the rest, as one optimiser."""

from collections.abc import Callable

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the weights of the plain linear layers in the blocks, `torch.optim.AdamW` on all else.

    Muon replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns (Jordan et al., 2024).
    Its step is scaled to the root mean square of AdamW's (arXiv 2502.16982), so that one learning rate serves both.
    Modulations that start at zero, embeddings, norms, biases and heads stay with AdamW. Both parts work on the state
    and the parameter groups of this object, so schedulers, checkpoints and `accelerate` see one optimiser.

    Args:
        model: a `PreTrainedModel`; its blocks are the modules named by `_no_split_modules`.
        lr, weight_decay, betas, eps: of both; betas and eps are AdamW's.

    Raises:
        ValueError: this version of torch has no Muon, or no trainable parameter is left for one of the two.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon: install torch 2.9 or newer, or set muon=False.")
        names = set(model._no_split_modules or ())
        blocks = [module for module in model.modules() if type(module).__name__ in names]
        linear = [layer for block in blocks for layer in block.modules() if type(layer) is nn.Linear]
        matrices = {id(layer.weight): layer.weight for layer in linear if layer.weight.requires_grad}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
        if not matrices or not others:
            raise ValueError(
                f"Muon needs trainable linear layers in the blocks ({', '.join(sorted(names)) or 'none are named'}) "
                f"and other parameters beside them; {type(model).__name__} has {len(matrices)} and {len(others)}. "
                "Set muon=False."
            )
        common = {"lr": lr, "weight_decay": weight_decay}
        self.parts = (
            torch.optim.Muon(matrices.values(), **common, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **common, betas=betas, eps=eps),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.share()

    def share(self) -> None:
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]

    def __setstate__(self, state):
        super().__setstate__(state)
        self.share()

    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


__all__ = ["MuonAdamW"]
