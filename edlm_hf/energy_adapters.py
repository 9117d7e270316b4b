"""LoRA (arXiv 2106.09685) of the energy by PEFT: the layers that it adapts, and how it is merged.

get_peft_model(model, energy_lora(r=8, alpha=16))
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from edlm_hf.modeling.energy_edlm import SharedLinear
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion

if TYPE_CHECKING:  # slow to import
    from peft import LoraConfig, PeftModel

# All linear layers in the blocks of the energy, and none of the denoiser, whether or not the energy
# shares the weights of the denoiser.
LORA_TARGET_MODULES = r"energy_model\.blocks\.\d+\.(attn_qkv|attn_out|mlp\.[02])"

# Modules that are small or start at zero are trained as a whole
LORA_MODULES_TO_SAVE = ["vocab_proj", "energy_head", "energy_model.output_layer.linear"]


def energy_lora(r: int = 16, alpha: int = 32, **kwargs) -> "LoraConfig":
    """Make the configuration of an adapter of the energy, for `peft.get_peft_model`.

    Args:
        r: rank of the updates B A.
        alpha: the updates are scaled by alpha / r.
        kwargs: of `peft.LoraConfig`.
    """
    from peft import LoraConfig

    # The keywords of PEFT, any of which may be given in `kwargs`
    arguments = {
        "r": r,
        "lora_alpha": alpha,
        "target_modules": LORA_TARGET_MODULES,
        "modules_to_save": LORA_MODULES_TO_SAVE,
    }
    return LoraConfig(**(arguments | kwargs))


def merge_lora(model: "PeftModel") -> EDLMForMaskedDiffusion:
    """Make the active adapters part of the model, which computes the same and needs no PEFT.

    With `energy_weights="own"` this is PEFT's `merge_and_unload`. Shared weights are the denoiser's
    and stay as they are: the adapters join the low-rank updates of the energy, exactly, in the
    precision of the model, and `energy_adapter_rank` grows. As with `merge_and_unload`, the base is
    changed and adapters that are not active are lost.

    Raises:
        ValueError: an adapter of a shared energy is on a layer of the denoiser, or is another kind
            than plain LoRA (DoRA, `lora_bias`, another method). Nothing has been changed then.
    """
    whole = model.get_base_model()
    if whole.config.energy_weights == "own":
        return model.merge_and_unload().requires_grad_(True)

    # 1. Check every layer before the first one is changed
    modules = whole.named_modules()
    adapted = {name: layer for name, layer in modules if hasattr(layer, "base_layer")}
    for name, layer in adapted.items():
        check_mergeable(name, layer)

    # 2. W + s B A: into W where it is the energy's, else into the updates beside the shared W
    for layer in adapted.values():
        if isinstance(layer.get_base_layer(), SharedLinear):
            merge_into_update(layer)
        else:
            layer.merge()
    model.unload()

    # 3. The configuration knows one rank for all layers: smaller updates are filled with zeros
    layers = [layer for layer in whole.energy_model.modules() if isinstance(layer, SharedLinear)]
    rank = max(layer.rank for layer in layers)
    for layer in layers:
        missing = rank - layer.rank
        down = torch.zeros(missing, layer.in_features)
        up = torch.zeros(layer.out_features, missing)
        widen(layer, down, up)
    whole.config.energy_adapter_rank = rank
    return whole.requires_grad_(True)


def check_mergeable(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer's adapters cannot be merged into a model with shared weights."""
    if not name.startswith("energy_model."):
        raise ValueError(
            f"An adapter is on {name}, whose weights the energy shares: merging it would change "
            "both. Put adapters on the energy alone (target_modules=LORA_TARGET_MODULES)."
        )

    for adapter in layer.active_adapters:
        is_lora = hasattr(layer, "lora_A")
        if not is_lora or adapter in layer.lora_variant or layer.lora_bias.get(adapter):
            raise ValueError(
                f"The adapter {adapter!r} on {name} is no plain LoRA, and only B A x can be added "
                "to weights that are shared. Keep it as an adapter, or train it without use_dora, "
                "lora_bias and the like."
            )


def merge_into_update(layer: nn.Module) -> None:
    """Add the active adapters of a layer to the low-rank update of its `SharedLinear`."""
    for adapter in layer.active_adapters:
        # An adapter need not be on every layer. A is (r, in), and B (out, r) takes the scale s.
        if adapter in layer.lora_A:
            down = layer.lora_A[adapter].weight
            up = layer.lora_B[adapter].weight * layer.scaling[adapter]
            widen(layer.get_base_layer(), down, up)


@torch.no_grad()
def widen(linear: SharedLinear, down: torch.Tensor, up: torch.Tensor) -> None:
    """Add `up` (out, r) `down` (r, in) to the low-rank update of a layer, whose rank grows by r."""
    if not len(down):
        return

    weight = linear.source.weight
    down = down.to(weight)
    up = up.to(weight)

    # B1 A1 + B2 A2 = [B1 B2] [A1; A2]
    if linear.rank:
        down = torch.cat([linear.down, down])
        up = torch.cat([linear.up, up], dim=1)
    linear.down = nn.Parameter(down.clone())
    linear.up = nn.Parameter(up.contiguous())


__all__ = ["LORA_MODULES_TO_SAVE", "LORA_TARGET_MODULES", "energy_lora", "merge_lora"]
