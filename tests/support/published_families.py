"""Families of LLaDA, Dream and their kin, with random weights in the layout of their files.

Every family has a config.json of tiny sizes with the settings of the public one, the names and shapes of its weights,
and its logits.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from published_configs import (
    A2D_LLAMA,
    A2D_QWEN2,
    A2D_QWEN3,
    DIFFUGPT,
    DIFFULLAMA,
    DREAM,
    LLADA,
    LLADA_MOE,
    MASK,
    START,
    VOCABULARY,
)
from published_networks import diffugpt_logits, diffullama_logits, llada_logits, llama_logits
from published_shapes import diffugpt_shapes, diffullama_shapes, llada_shapes, llama_shapes, qwen3_shapes, qwen_shapes
from safetensors.torch import save_file

# A text with holes, of which position 0 is known: a shifted network says nothing of it
HOLES = torch.tensor([START, 3, MASK, 5, MASK, MASK, 7, MASK, 2])


@dataclass(frozen=True)
class Published:
    """A family: config.json, names and shapes of the weights, the logits (L, V) of a row, and their shift."""

    config: dict
    shapes: Callable[[dict], dict]
    logits: Callable[[dict, dict, torch.LongTensor], torch.Tensor]
    shift: int = 0

    def weights(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random weights. The norms stay near one."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in self.shapes(self.config).items():
            drawn = 0.4 * torch.randn(shape, generator=generator)
            is_norm = len(shape) == 1 and name.endswith(".weight")
            weights[name] = 1 + drawn / 4 if is_norm else drawn
        return weights

    def write(self, folder: Path, num_files: int = 1, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
        """Write config.json with `changes`, and the weights in one file or in several with an index."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | changes))
        weights = self.weights(seed)
        write_weights(folder, weights, num_files)
        return weights

    def denoiser(self, weights: dict[str, torch.Tensor]) -> Callable[[torch.LongTensor], torch.Tensor]:
        """Ids (1, L) -> logits (1, L, V) of the clean tokens at their own positions. No other token exists."""

        def logits_of(ids: torch.LongTensor) -> torch.Tensor:
            logits = self.logits(self.config, weights, ids[0])
            if self.shift:  # as the published samplers put them in place
                logits = torch.cat([logits[:1], logits[:-1]])
            logits[:, VOCABULARY:] = -torch.inf
            return logits[None]

        return logits_of


def write_weights(folder: Path, weights: dict[str, torch.Tensor], num_files: int = 1) -> None:
    if num_files == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return

    names, weight_map = sorted(weights), {}
    for n in range(num_files):
        file = f"model-{n + 1:05d}-of-{num_files:05d}.safetensors"
        weight_map |= dict.fromkeys(names[n::num_files], file)
        save_file(
            {name: weights[name] for name in names[n::num_files]},
            folder / file,
            metadata={"format": "pt"},
        )

    index = {
        "metadata": {"total_size": sum(x.nbytes for x in weights.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


PUBLISHED = {
    "LLaDA": Published(LLADA, llada_shapes, llada_logits),
    "LLaDA-MoE": Published(LLADA_MOE, qwen3_shapes, llama_logits),
    "Dream": Published(DREAM, qwen_shapes, llama_logits, shift=1),
    "A2D-Llama": Published(A2D_LLAMA, llama_shapes, llama_logits),
    "A2D-Qwen2": Published(A2D_QWEN2, qwen_shapes, llama_logits),
    "A2D-Qwen3": Published(A2D_QWEN3, qwen3_shapes, llama_logits),
    "DiffuGPT": Published(DIFFUGPT, diffugpt_shapes, diffugpt_logits, shift=1),
    "DiffuLLaMA": Published(DIFFULLAMA, diffullama_shapes, diffullama_logits, shift=1),
}
