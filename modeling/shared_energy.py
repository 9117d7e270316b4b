"""The NCE energy that reads the denoiser's trunk instead of holding one of its own."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization

from .mdlm_blocks import BlockReader, ZeroLinear
from .mdlm_trunk import MDLMModel, MDLMPreTrainedModel
from .network_energy import NetworkEnergyMixin, start_as_mean


class EDLMSharedEnergyModel(NetworkEnergyMixin, MDLMPreTrainedModel):
    """An energy that owns `vocab_proj`, the output projection, the head and perhaps low-rank updates.

    The trunk is the denoiser's. It is a reference and not a sub-module, so that its weights are
    stored once, with the denoiser. Its own modules run, as they are at the time, with the linear
    layers of the energy instead of theirs. Nothing is switched on or off in them for that: the
    denoiser keeps its bare weights and its own mode (eval while an energy is trained), and calls
    from several threads do not meet.

    The energy's linear layers are sub-modules (`SharedLinear`) under the names they have in an
    energy with weights of its own. A module that replaces one of them, such as an adapter of PEFT,
    is the one that runs.

    Args:
        trunk: the denoiser's `backbone`.
        adapter_rank: rank of the updates of all linear layers in the blocks, 0 for none.
    """

    def __init__(self, trunk: MDLMModel, adapter_rank: int = 0):
        config = trunk.config
        width = config.hidden_dim
        super().__init__(config)

        # Under the names of an `EDLMEnergyModel`
        self.reference = TrunkReference(trunk)
        self.blocks = nn.ModuleList()
        for index in range(config.n_blocks):
            self.blocks.append(SharedBlock(self.reference, index, width, adapter_rank))
        self.output_layer = nn.ModuleDict({"linear": ZeroLinear(width, width)})
        self.add_energy_layers(width)

        # The trunk is trained, so that the energy starts with the mean of the two embeddings
        self.post_init()
        start_as_mean(self.vocab_proj)
        self.to(trunk.device, trunk.dtype)

    @property
    def trunk(self) -> MDLMModel:
        return self.reference.trunk

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.vocab_embed

    def read(self, **inputs) -> torch.Tensor:
        """The trunk with the linear layers and the mode of this energy, then the projection."""
        readers = [BlockReader(block) for block in self.blocks]
        hidden = self.trunk(readers=readers, **inputs).last_hidden_state
        return self.output_layer["linear"](hidden)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if not isinstance(module, SharedLinear):
            super()._init_weights(module)
        elif module.rank:
            # LoRA starts one factor at zero. Here the output projection is zero already, and with
            # two zero factors in a row no gradient flows.
            initialization.kaiming_uniform_(module.down, a=math.sqrt(5))
            initialization.uniform_(module.up, -0.02, 0.02)


@dataclass(frozen=True)
class TrunkReference:
    """The trunk of a denoiser, which is not a part of the energy.

    A copy of the energy refers to the same trunk, unless the denoiser is copied with it.
    """

    trunk: MDLMModel

    def __deepcopy__(self, memo: dict) -> "TrunkReference":
        return TrunkReference(memo.get(id(self.trunk), self.trunk))


class SharedBlock(nn.Module):
    """The linear layers with which an energy runs a block of the trunk, under their names there.

    It has the mode and the checkpointing of the energy in that block: `gradient_checkpointing` is
    set as in any block.
    """

    gradient_checkpointing = False

    def __init__(self, reference: TrunkReference, index: int, width: int, rank: int):
        super().__init__()

        def layer(name: str, in_features: int, out_features: int) -> SharedLinear:
            path = f"blocks.{index}.{name}"
            return SharedLinear(reference, path, in_features, out_features, rank)

        self.attn_qkv = layer("attn_qkv", width, 3 * width)
        self.attn_out = layer("attn_out", width, width)
        self.mlp = nn.ModuleDict(
            {
                "0": layer("mlp.0", width, 4 * width),
                "2": layer("mlp.2", 4 * width, width),
            }
        )


class SharedLinear(nn.Linear):
    """W x + b + B A x, where (W, b) is a linear layer of the trunk (LoRA, arXiv 2106.09685).

    Args:
        reference, name: where that layer is looked up at every call.
        in_features, out_features: of that layer.
        rank: of `down` (rank, in) = A and `up` (out, rank) = B. With 0 the layer owns nothing.
    """

    def __init__(
        self,
        reference: TrunkReference,
        name: str,
        in_features: int,
        out_features: int,
        rank: int = 0,
    ):
        nn.Module.__init__(self)  # an nn.Linear without weights of its own
        self.reference = reference
        self.path = tuple(name.split("."))
        self.in_features = in_features
        self.out_features = out_features

        self.down = None
        self.up = None
        if rank:
            self.down = nn.Parameter(torch.empty(rank, in_features))
            self.up = nn.Parameter(torch.empty(out_features, rank))

    @property
    def source(self) -> nn.Module:
        """The layer of the trunk, whichever module has its name now."""
        module = self.reference.trunk
        for name in self.path:
            module = getattr(module, name)
        return module

    @property
    def weight(self) -> torch.Tensor:
        return self.source.weight.detach().as_subclass(BorrowedTensor)

    @weight.setter
    def weight(self, value: torch.Tensor):
        self.check_unchanged(self.source.weight, value)

    @property
    def bias(self) -> torch.Tensor | None:
        bias = self.source.bias
        return None if bias is None else bias.detach().as_subclass(BorrowedTensor)

    @bias.setter
    def bias(self, value: torch.Tensor | None):
        self.check_unchanged(self.source.bias, value)

    def check_unchanged(self, own: torch.Tensor | None, value: torch.Tensor | None) -> None:
        """Refuse another weight or bias. Adapters that are taken away put back the ones they saw.

        Raises:
            ValueError: the denoiser's weight would be replaced.
        """
        if own is None and value is None:
            return
        if own is None or value is None or own.data_ptr() != value.data_ptr():
            raise ValueError(READ_ONLY)

    @property
    def rank(self) -> int:
        return 0 if self.down is None else len(self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # W x + b by the layer of the trunk, whose hooks run
        output = self.source(x)
        down = self.down
        up = self.up
        if down is None:
            return output

        # B A x in the precision of the update: (..., in) -> (..., rank) -> (..., out)
        inner = nn.functional.linear(x.to(down.dtype), down)
        update = nn.functional.linear(inner, up)
        return output + update.to(output.dtype)


READ_ONLY = (
    "This weight is the denoiser's, which the energy only reads (energy_weights='shared'): nothing can be "
    "merged into it, and no adapter can start by changing it. For merging use "
    "edlm_hf.training.merge_lora(model), for starting init_lora_weights=True or 'gaussian'."
)

# x.data = y, x[i] = y, x += y, ...
WRITING = {"__set__", "__setitem__"}
WRITING.update(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod"))


class BorrowedTensor(torch.Tensor):
    """A tensor that can be read. An operation that would change it in place raises ValueError."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}

        # Methods that write in place, such as add_, change their first argument
        name = function.__name__
        changed = kwargs.get("out")
        if name in WRITING or (name.endswith("_") and not name.endswith("__")):
            changed = next(iter((*args, *kwargs.values())))
        if isinstance(changed, cls):
            raise ValueError(READ_ONLY)

        # x.data is x itself, so that it cannot be written by way of its data either
        if function == torch.Tensor.data.__get__:
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)
