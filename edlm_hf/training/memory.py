"""The memory that a model and its training take."""

import sys

import torch
from transformers import PreTrainedModel


def sizes_in_bytes(model: PreTrainedModel) -> dict[str, int | float]:
    """Bytes of parameters and buffers: of all, and of a composite's denoiser, energy head and the rest beside them.

    `energy_overhead` is what all but the head takes, as a multiple of the denoiser: 2 for a copy,
    at most 1.1 for a shared energy.
    """

    def size(module):
        tensors = (*module.parameters(), *module.buffers())
        return sum(x.numel() * x.element_size() for x in tensors)

    sizes = {"parameters": model.num_parameters(), "bytes": size(model)}
    energy = getattr(model, "energy_model", None)
    if energy is None:
        return sizes

    # The layers that an energy has of its own, also where it shares the trunk
    own_layers = energy.vocab_proj, energy.output_layer.linear, energy.energy_head
    head = sum(map(size, own_layers))
    denoiser = size(model.denoiser)

    # 1 is the denoiser alone
    overhead = (sizes["bytes"] - head) / denoiser
    return sizes | {
        "denoiser_bytes": denoiser,
        "head_bytes": head,
        "energy_overhead": round(overhead, 4),
    }


def peak_memory() -> int:
    """Most memory of the accelerator so far, or of the process where there is none, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0

    # macOS counts in bytes, Linux in KiB
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


__all__ = ["peak_memory", "sizes_in_bytes"]
