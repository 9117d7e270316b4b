"""LoRA (arXiv 2106.09685) of the energy by PEFT: what it is put on, and how it becomes part of the model.

get_peft_model(model, LoraConfig(r=8, target_modules=LORA_TARGET_MODULES, modules_to_save=LORA_MODULES_TO_SAVE))
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from edlm_hf.modeling.energy_edlm import SharedLinear
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion

if TYPE_CHECKING:  # slow to import
    from peft import PeftModel

# The linear layers of the energy's blocks, whether its weights are its own or the denoiser's: none of the denoiser's
# modules matches. What is small or starts at zero is trained as a whole.
LORA_TARGET_MODULES = r"energy_model\.blocks\.\d+\.(attn_qkv|attn_out|mlp\.[02])"
LORA_MODULES_TO_SAVE = ["vocab_proj", "energy_head", "energy_model.output_layer.linear"]


def merge_lora(model: "PeftModel") -> EDLMForMaskedDiffusion:
    """The model with its active adapters as part of it: it computes the same, and needs no PEFT.

    With `energy_weights="own"` this is PEFT's `merge_and_unload`. Shared weights are the denoiser's and stay as they
    are: the adapters join the low-rank updates of the energy (`energy_adapter_rank` grows), exactly, in the precision
    of the model. As with `merge_and_unload`, the base is changed and adapters that are not active are lost.

    Raises:
        ValueError: an adapter of a shared energy is on a layer of the denoiser, or is no plain LoRA (DoRA, `lora_bias`,
            another method); nothing has been changed then.
    """
    whole = model.get_base_model()
    if whole.config.energy_weights == "own":
        return model.merge_and_unload().requires_grad_(True)
    adapted = {name: layer for name, layer in whole.named_modules() if hasattr(layer, "base_layer")}
    for name, layer in adapted.items():
        check_mergeable(name, layer)
    for layer in adapted.values():
        linear = layer.get_base_layer()
        if not isinstance(linear, SharedLinear):  # of the energy alone
            layer.merge()
            continue
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                up = layer.lora_B[adapter].weight * layer.scaling[adapter]
                widen(linear, layer.lora_A[adapter].weight, up)
    model.unload()
    layers = [layer for layer in whole.energy_model.modules() if isinstance(layer, SharedLinear)]
    rank = max(layer.rank for layer in layers)
    for layer in layers:  # the configuration knows one rank for all
        missing = rank - layer.rank
        widen(layer, torch.zeros(missing, layer.in_features), torch.zeros(layer.out_features, missing))
    whole.config.energy_adapter_rank = rank
    return whole.requires_grad_(True)


def check_mergeable(name: str, layer: nn.Module) -> None:
    """Raise ValueError if the adapters of a layer of a model with shared weights cannot become part of it."""
    if not name.startswith("energy_model."):
        raise ValueError(
            f"An adapter is on {name}, whose weights the energy shares: merging it would change both. Put adapters on "
            "the energy alone (target_modules=LORA_TARGET_MODULES)."
        )
    for adapter in layer.active_adapters:
        plain = hasattr(layer, "lora_A") and adapter not in layer.lora_variant and not layer.lora_bias.get(adapter)
        if not plain:
            raise ValueError(
                f"The adapter {adapter!r} on {name} is no plain LoRA, and only B A x can be added to weights that are "
                "shared. Keep it as an adapter, or train it without use_dora, lora_bias and the like."
            )


@torch.no_grad()
def widen(linear: SharedLinear, down: torch.Tensor, up: torch.Tensor) -> None:
    """Add `up` (out, r) `down` (r, in) to the low-rank update of a layer."""
    if not len(down):
        return
    weight = linear.source.weight
    down, up = down.to(weight), up.to(weight)
    if linear.rank:
        down, up = torch.cat([linear.down, down]), torch.cat([linear.up, up], dim=1)
    linear.down, linear.up = nn.Parameter(down.clone()), nn.Parameter(up.contiguous())


__all__ = ["LORA_MODULES_TO_SAVE", "LORA_TARGET_MODULES", "merge_lora"]
