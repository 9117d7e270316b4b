"""The NCE energy that reads the denoiser's trunk instead of holding one of its own."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn
from transformers import initialization
from transformers.utils.generic import can_return_tuple

from .modeling_mdlm import MDLMModel, MDLMPreTrainedModel, ZeroLinear
from .network_energy import EDLMEnergyOutput, energy_layers, keep_head_wide, sequence_energy, start_as_mean


class EDLMSharedEnergyModel(MDLMPreTrainedModel):
    """An energy that owns only `vocab_proj`, the output projection, the head and perhaps low-rank updates.

    The trunk is the denoiser's, a reference and not a sub-module: its weights are stored once, with the denoiser. The
    energy runs them through modules of its own, so that the denoiser keeps its bare weights and its own mode (eval
    while an energy is trained), and calls from several threads do not meet. The linear layers of the blocks are
    sub-modules (`SharedLinear`) under the names they have in an energy with weights of its own: what is put in their
    place, adapters of PEFT for example, is what runs.

    Args:
        trunk: the denoiser's `backbone`.
        adapter_rank: rank of the updates of all linear layers in the blocks; 0 for none.
    """

    base_model_prefix = "ebm"
    _keep_in_fp32_modules_strict = ["energy_head"]

    def __init__(self, trunk: MDLMModel, adapter_rank: int = 0):
        super().__init__(trunk.config)
        self.__dict__ |= {"trunk": trunk, "twin": None}
        self.blocks = shared_layers(trunk.blocks, adapter_rank)
        self.output_layer = nn.ModuleDict({"linear": ZeroLinear(trunk.config.hidden_dim, trunk.config.hidden_dim)})
        self.vocab_proj, self.energy_head = energy_layers(trunk.config.hidden_dim)
        self.post_init()
        start_as_mean(self.vocab_proj)
        self.to(trunk.device, trunk.dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.vocab_embed

    def run_trunk(self, **kwargs):
        """The trunk's forward with the linear layers of this energy."""
        if self.twin is None:
            self.__dict__["twin"] = twin_of(self.trunk, {"blocks": self.blocks}).train(self.training)
        return self.twin(**kwargs)

    def train(self, mode: bool = True):
        if self.twin is not None:
            self.twin.train(mode)
        return super().train(mode)

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


class SharedLinear(nn.Linear):
    """W x + b with the present parameters of another linear layer, + B A x with its own (LoRA, arXiv 2106.09685).

    Args:
        source: the layer whose parameters are read; a reference, not a sub-module.
        rank: of `down` (rank, in) = A and `up` (out, rank) = B; 0 for none, so that the layer owns nothing.
    """

    def __init__(self, source: nn.Linear, rank: int = 0):
        nn.Module.__init__(self)
        self.__dict__["source"] = source
        self.in_features, self.out_features = source.in_features, source.out_features
        self.down = nn.Parameter(torch.empty(rank, self.in_features)) if rank else None
        self.up = nn.Parameter(torch.empty(self.out_features, rank)) if rank else None

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
        return y + nn.functional.linear(nn.functional.linear(x, self.down), self.up) if self.rank else y


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


def shared_layers(module: nn.Module, rank: int) -> nn.ModuleDict:
    """The linear layers below `module` as `SharedLinear`, under their names."""
    layers = nn.ModuleDict()
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            layers[name] = SharedLinear(part, rank)
        elif inner := shared_layers(part, rank):
            layers[name] = inner
    return layers


def twin_of(module: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The same modules on the same parameters and buffers, with `layers` (as of `shared_layers`) for those named there.

    The copies hold the very dictionaries of the parameters, so a parameter that is replaced (in a model that is loaded
    or moved) is replaced in both. The layers are looked up when they are called.
    """
    twin, parts = copy.copy(module), {}
    for name, part in module._modules.items():
        inner = layers[name] if name in layers else {}
        parts[name] = twin_of(part, inner) if isinstance(inner, (dict, nn.ModuleDict)) else LookedUp(layers, name)
    twin.__dict__["_modules"] = parts
    return twin


class LookedUp(nn.Module):
    """Calls what a dictionary of modules holds under a name at the time."""

    def __init__(self, layers: nn.ModuleDict, name: str):
        super().__init__()
        self.__dict__ |= {"layers": layers, "name": name}

    def forward(self, *args, **kwargs):
        return self.layers[self.name](*args, **kwargs)
