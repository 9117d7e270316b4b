"""Muon for the matrices of the transformer blocks and AdamW for the rest, as one optimiser."""

from collections.abc import Callable

import torch
from torch import nn

# Keller Jordan's quintic a x + b x^3 + c x^5: five rounds take singular values into about [0.7, 1.2]
QUINTIC = 3.4445, -4.7750, 2.0315
NUM_ROUNDS = 5

# The root mean square of a step of AdamW, about, which Muon's step is brought to
STEP_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Replace the momentum of a matrix by the nearest one with orthonormal rows or columns.

    Jordan et al., 2024, with Nesterov momentum. The step of an (m, n) matrix is scaled by
    0.2 sqrt(max(m, n)), to the root mean square of AdamW's (arXiv 2502.16982).

    `torch.optim.Muon` works in bfloat16 everywhere. A processor without instructions for it is many
    times slower than in float32, so here only an accelerator uses it.

    Args:
        matrices: parameters of two dimensions.
        lr: the learning rate.
        weight_decay: the share of a matrix that a step removes, before the learning rate.
        momentum: the share of the old momentum that stays.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self.update(matrix, group)
        return loss

    def update(self, matrix: nn.Parameter, group: dict) -> None:
        """Take the step of one matrix."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)

        # m <- mu m + (1 - mu) g, and the direction mu m + (1 - mu) g once more (Nesterov)
        momentum = group["momentum"]
        average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        direction = orthonormal(matrix.grad.lerp(average, momentum))

        # An orthonormal (m, n) matrix has the root mean square max(m, n)^(-1/2)
        scale = STEP_SIZE * max(matrix.shape) ** 0.5

        # W <- (1 - lr lambda) W - lr scale D: the decay is decoupled, as in AdamW
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * scale)


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal rows or columns, about, by Newton-Schulz rounds.

    For (m, n) with singular values s the result has the same singular vectors and values between
    0.7 and 1.2, wherever s is not far below the largest one.
    """
    # bfloat16 has enough digits for a step, and is slow on a processor
    on_processor = matrix.device.type == "cpu"
    x = matrix.float() if on_processor else matrix.bfloat16()

    # With the smaller Gram matrix, and with no singular value above one
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / x.norm().clamp_min(1e-7)

    # x <- a x + (b G + c G^2) x, where G = x x^T
    a, b, c = QUINTIC
    for _ in range(NUM_ROUNDS):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """`Muon` on the plain linear layers of the blocks, `torch.optim.AdamW` on the rest.

    One learning rate serves both, since Muon's step has the root mean square of AdamW's.
    Modulations that start at zero, embeddings, norms, biases and heads stay with AdamW. Both parts
    work on the state and the parameter groups of this object, so schedulers, checkpoints and
    `accelerate` see one optimiser.

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
        muon = Muon(matrices, **common)
        adamw = torch.optim.AdamW(others, **common, betas=betas, eps=eps)
        self.parts = (muon, adamw)

        # One group of each part, in this order, which checkpoints keep
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        self.share_state()

    def share_state(self) -> None:
        """Let both parts work on the state and on the parameter groups of this object."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state = self.state
            part.param_groups = [group]

    def __setstate__(self, state):
        # Loading a checkpoint replaces the state and the groups by new objects
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

    # By identity: tensors have no equality, and tied weights are one object
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    others = [weight for weight in trainable if id(weight) not in matrices]

    if not matrices or not others:
        named = ", ".join(sorted(names)) or "none are named"
        raise ValueError(
            f"Muon needs trainable linear layers in the blocks ({named}) and other parameters "
            f"beside them; {type(model).__name__} has {len(matrices)} and {len(others)}. Set "
            "muon=False."
        )
    return list(matrices.values()), others


__all__ = ["Muon", "MuonAdamW"]
