"""The base class of the networks of MDLM: how weights start, and how they are loaded and saved."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils.output_capturing import OutputRecorder

from .checkpoints import CheckpointingMixin, check_loaded_keys, composite_part, set_auto_map
from .configuration_mdlm import MDLMConfig
from .mdlm_blocks import MDLMBlock, ZeroLinear
from .network_facts import device_of
from .prefix_cache import CACHE_NAMES


class MDLMPreTrainedModel(CheckpointingMixin, PreTrainedModel):
    """The base of all networks that are made of `MDLMBlock`s."""

    # A headed model holds its trunk under this name, as published files do
    config: MDLMConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    # A block stays on one device, and a cache where it is
    _no_split_modules = ["MDLMBlock"]
    _skip_keys_device_placement = list(CACHE_NAMES)

    # Attention goes through the interface of transformers, whose backends can be chosen by name
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # output_hidden_states and output_attentions: a block returns (states, attention weights)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(MDLMBlock, index=0),
        "attentions": OutputRecorder(MDLMBlock, index=1),
    }

    # Published files store the rotary frequencies, which are computed here.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]
    # The name of this model as a part of a saved EDLM composite, out of which it can be loaded
    _composite_part = "denoiser"
    _composite_part_is_causal = False
    _auto_map = {}

    @property
    def device(self) -> torch.device:
        """Where the network computes, also while its weights are offloaded."""
        return device_of(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Start as published: torch's own way for linear layers, zero for a `ZeroLinear`."""
        if isinstance(module, ZeroLinear):
            initialization.zeros_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if getattr(module, "bias", None) is not None:
                bound = 1 / math.sqrt(module.in_features)
                initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info=False,
        **kwargs,
    ):
        """Load strictly by `PreTrainedModel.from_pretrained`, also out of an EDLM composite.

        Raises:
            ValueError: the file lacks a weight of the model or has one too many. Loading the trunk
                from a headed checkpoint, or a headed model from a trunk, stays allowed.
        """
        # Without a path the weights come as a state_dict, and nothing says what must be in it
        path = pretrained_model_name_or_path
        part_arguments = {}
        if path is not None:
            part_arguments = composite_part(cls, path, kwargs)
        kwargs.update(part_arguments)
        model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)

        if path is not None:
            check_loaded_keys(model, info, path, of_composite=bool(part_arguments))
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save by `PreTrainedModel.save_pretrained`, with the code beside the weights."""
        set_auto_map(self)
        super().save_pretrained(save_directory, *args, **kwargs)


def is_of_transformers(module: nn.Module) -> bool:
    """Whether the code of a module is in transformers or in this package."""
    if isinstance(module, MDLMPreTrainedModel):
        return True
    return type(module).__module__.startswith("transformers.")
