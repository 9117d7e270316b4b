"""The NCE energy that reads the denoiser's trunk instead of holding one of its own."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization
from transformers.utils.generic import can_return_tuple

from .mdlm_blocks import BlockReader, ZeroLinear
from .modeling_mdlm import MDLMModel, MDLMPreTrainedModel
from .network_energy import EDLMEnergyOutput, energy_layers, keep_head_wide, sequence_energy, start_as_mean


class EDLMSharedEnergyModel(MDLMPreTrainedModel):
    """An energy that owns only `vocab_proj`, the output projection, the head and perhaps low-rank updates.

    The trunk is the denoiser's, a reference and not a sub-module: its weights are stored once, with the denoiser. Its
    own modules run, as they are at the time, with the linear layers of the energy in the places of theirs. Nothing is
    switched on or off in them for that: the denoiser keeps its bare weights and its own mode (eval while an energy is
    trained), and calls from several threads do not meet. The energy's linear layers are sub-modules (`SharedLinear`)
    under the names they have in an energy with weights of its own: what is put in their place, adapters of PEFT for
    example, is what runs.

    Args:
        trunk: the denoiser's `backbone`.
        adapter_rank: rank of the updates of all linear layers in the blocks; 0 for none.
    """

    base_model_prefix = "ebm"
    _keep_in_fp32_modules_strict = ["energy_head"]

    def __init__(self, trunk: MDLMModel, adapter_rank: int = 0):
        super().__init__(trunk.config)
        self.reference = TrunkReference(trunk)
        self.blocks = nn.ModuleList(
            SharedBlock(self.reference, index, trunk.config.hidden_dim, adapter_rank)
            for index in range(trunk.config.n_blocks)
        )
        self.output_layer = nn.ModuleDict({"linear": ZeroLinear(trunk.config.hidden_dim, trunk.config.hidden_dim)})
        self.vocab_proj, self.energy_head = energy_layers(trunk.config.hidden_dim)
        self.post_init()
        start_as_mean(self.vocab_proj)
        self.to(trunk.device, trunk.dtype)

    @property
    def trunk(self) -> MDLMModel:
        return self.reference.trunk

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.vocab_embed

    @property
    def twin(self) -> "EDLMSharedEnergyModel":
        """The energy itself, whose blocks say how the trunk runs for it (version 0.1.0 kept a copy of the trunk)."""
        return self

    def run_trunk(self, **kwargs):
        """The trunk's forward with the linear layers and the mode of this energy."""
        return self.trunk(readers=[BlockReader(block) for block in self.blocks], **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if not isinstance(module, SharedLinear):
            super()._init_weights(module)
        elif module.rank:
            initialization.kaiming_uniform_(module.down, a=math.sqrt(5))
            # Not zero, as is usual: the output projection is, and with two zero factors in a row no gradient flows.
            initialization.uniform_(module.up, -0.02, 0.02)

    def _apply(self, fn, recurse=True):
        return keep_head_wide(super()._apply(fn, recurse))

    @can_return_tuple
    def forward(self, candidate_ids, noisy_ids, attention_mask=None, timesteps=None, **kwargs) -> EDLMEnergyOutput:
        """As `EDLMEnergyModel.forward`."""
        inputs = candidate_ids, noisy_ids, attention_mask, timesteps
        return sequence_energy(self, self.run_trunk, self.output_layer["linear"], *inputs, **kwargs)


@dataclass(frozen=True)
class TrunkReference:
    """The trunk of a denoiser for an energy: not a part of it, and copied only where the denoiser is copied too."""

    trunk: MDLMModel

    def __deepcopy__(self, memo: dict) -> "TrunkReference":
        return TrunkReference(memo.get(id(self.trunk), self.trunk))


class SharedBlock(nn.Module):
    """The linear layers with which an energy runs a block of the trunk, under their names there.

    It has the mode and the checkpointing of the energy in that block: `gradient_checkpointing` is set as in any block.
    """

    gradient_checkpointing = False

    def __init__(self, reference: TrunkReference, index: int, width: int, rank: int):
        super().__init__()

        def layer(name: str, in_features: int, out_features: int) -> SharedLinear:
            return SharedLinear(reference, f"blocks.{index}.{name}", in_features, out_features, rank)

        self.attn_qkv = layer("attn_qkv", width, 3 * width)
        self.attn_out = layer("attn_out", width, width)
        self.mlp = nn.ModuleDict({"0": layer("mlp.0", width, 4 * width), "2": layer("mlp.2", 4 * width, width)})


class SharedLinear(nn.Linear):
    """What a linear layer of the trunk computes at present, + B A x with its own (LoRA, arXiv 2106.09685).

    Args:
        reference, name: where the layer is looked up at every call.
        in_features, out_features: of that layer.
        rank: of `down` (rank, in) = A and `up` (out, rank) = B; 0 for none, so that the layer owns nothing.
    """

    def __init__(self, reference: TrunkReference, name: str, in_features: int, out_features: int, rank: int = 0):
        nn.Module.__init__(self)
        self.reference = reference
        self.path = tuple(name.split("."))
        self.in_features = in_features
        self.out_features = out_features
        self.down = nn.Parameter(torch.empty(rank, in_features)) if rank else None
        self.up = nn.Parameter(torch.empty(out_features, rank)) if rank else None

    @property
    def source(self) -> nn.Module:
        """The layer of the trunk, whatever stands there now."""
        module = self.reference.trunk
        for name in self.path:
            module = getattr(module, name)
        return module

    @property
    def weight(self) -> torch.Tensor:
        return self.source.weight.detach().as_subclass(BorrowedTensor)

    @property
    def bias(self) -> torch.Tensor | None:
        return None if self.source.bias is None else self.source.bias.detach().as_subclass(BorrowedTensor)

    @property
    def rank(self) -> int:
        return 0 if self.down is None else len(self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.source(x)
        down = self.down
        if down is None:
            return y
        update = nn.functional.linear(nn.functional.linear(x.to(down.dtype), down), self.up)
        return y + update.to(y.dtype)


class BorrowedTensor(torch.Tensor):
    """A tensor that can be read; what would change it in place raises ValueError."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name, kwargs = function.__name__, kwargs or {}
        changed = kwargs.get("out")
        if name in WRITING or (name.endswith("_") and not name.endswith("__")):
            changed = next(iter((*args, *kwargs.values())))
        if isinstance(changed, cls):
            raise ValueError(
                "This weight is the denoiser's, which the energy only reads (energy_weights='shared'): nothing can be "
                "merged into it, and no adapter can start by changing it. For merging use "
                "edlm_hf.training.merge_lora(model), for starting init_lora_weights=True or 'gaussian'."
            )
        if function == torch.Tensor.data.__get__:
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)


# x.data = y, x[i] = y, x += y, ...
WRITING = {"__set__", "__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod"))}
