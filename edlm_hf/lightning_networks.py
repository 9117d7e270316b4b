"""The networks in the `state_dict` of a Lightning checkpoint, told apart by their keys and sized by their shapes."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.energy_edlm import EDLMEnergyModel
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.modeling_mdlm_causal import MDLMForCausalLM
from edlm_hf.terminal import list_names


@dataclass
class Network:
    """One network of a checkpoint.

    Args:
        model_class: the class of the model to be made of it.
        prefix: the part of a key in the file before the model's own name of the parameter.
        weights: parameters by the model's names, in the order of the file, which is the order of
            `parameters()`.
        rotary: the stored rotary frequencies (head_dim / 2,), if any.
    """

    model_class: type[PreTrainedModel]
    prefix: str
    weights: dict[str, torch.Tensor]
    rotary: torch.Tensor | None = None

    def __post_init__(self):
        # A buffer that our models compute, and not a parameter
        for name in list(self.weights):
            if name.endswith("rotary_emb.inv_freq"):
                self.rotary = self.weights.pop(name)

    def new_model(self, n_heads: int | None, options: dict) -> PreTrainedModel:
        """Make a new model of the right sizes that takes exactly these weights.

        Args:
            n_heads: the number of attention heads, if the user gave it.
            options: further fields of the configuration.

        Raises:
            ValueError: a key is missing or left over, a shape differs (all are listed), the number
                of heads is unknown, or `time_conditioning` is asked of an autoregressive model.
        """
        causal = self.model_class is MDLMForCausalLM
        if causal and options["time_conditioning"]:
            raise ValueError(
                "time_conditioning=True, but the file holds an autoregressive model (it has no sigma_map), which sees "
                "no noise level. Leave time_conditioning out."
            )

        # Names and shapes are compared before a model takes memory
        config = MDLMConfig(**self.sizes(n_heads), **options, causal=causal)
        self.check_shapes(self.expected_shapes(config))
        return self.model_class(config)

    def check_shapes(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raise ValueError with every parameter that is missing, left over or of another shape."""
        # Names first: only what has a partner has a shape to compare
        missing = [name for name in expected if name not in self.weights]
        extra = [name for name in self.weights if name not in expected]
        check_all_used(self.file_names(missing), self.file_names(extra))

        wrong = []
        for name, weight in self.weights.items():
            shape = tuple(weight.shape)
            if shape != expected[name]:
                wrong.append(f"{self.prefix}{name} is {shape}, not {expected[name]}")
        if wrong:
            raise ValueError(f"The shapes in the checkpoint contradict each other. {list_names('Wrong', wrong)}")

    def expected_shapes(self, config: MDLMConfig) -> dict[str, tuple[int, ...]]:
        """List the shape of every parameter without the memory of a model: the file may claim any sizes.

        All blocks are alike, so a model of one block on the meta device gives the shapes of all.
        """
        smallest = copy.deepcopy(config)
        smallest.n_blocks = min(config.n_blocks, 1)
        with torch.device("meta"):
            parameters = self.model_class(smallest).state_dict()

        expected = {}
        for name, parameter in parameters.items():
            # A parameter outside the blocks is there once, any other once for each block
            shape = tuple(parameter.shape)
            before, in_block, after = name.partition("blocks.0.")
            if not in_block:
                expected[name] = shape
                continue

            for i in range(config.n_blocks):
                expected[f"{before}blocks.{i}.{after}"] = shape
        return expected

    def sizes(self, n_heads: int | None) -> dict[str, int]:
        """Read the sizes in `MDLMConfig` from the shapes of the weights.

        Raises:
            ValueError: the embedding is missing, or the number of heads is unknown or contradicts
                the file.
        """
        trunk = "" if self.model_class is EDLMEnergyModel else "backbone."
        shapes = {name.removeprefix(trunk): tuple(x.shape) for name, x in self.weights.items()}

        # The embedding is (V, width)
        embedding = shapes.get("vocab_embed.embedding", ())
        if len(embedding) != 2:
            check_all_used(missing=self.file_names([f"{trunk}vocab_embed.embedding"]), extra=[])
        vocab_size, hidden_dim = embedding

        # `blocks.11.attn_qkv.weight` -> "11"
        block_numbers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        sizes = {
            "vocab_size": vocab_size,
            "hidden_dim": hidden_dim,
            "n_heads": self.number_of_heads(hidden_dim, n_heads),
            "n_blocks": len(block_numbers),
        }

        # The conditioning MLP starts with a layer of weight (cond_dim, frequencies)
        conditioning = shapes.get("sigma_map.mlp.0.weight")
        if conditioning:
            sizes["cond_dim"] = conditioning[0]
        return sizes

    def number_of_heads(self, hidden_dim: int, n_heads: int | None) -> int:
        """Return the number of heads by the file, or `n_heads` where the file does not tell.

        Raises:
            ValueError: neither says it, or they contradict each other.
        """
        stored = self.stored_heads(hidden_dim)
        if stored is None and n_heads is None:
            raise ValueError(
                "The checkpoint has no rotary_emb.inv_freq, so the number of attention heads is unknown. Pass n_heads "
                f"(12 in the published models of width 768; this one has width {hidden_dim})."
            )
        if stored is not None and n_heads not in (None, stored):
            raise ValueError(
                f"n_heads is {n_heads}, but the rotary frequencies in the checkpoint are those of {stored} heads in a "
                f"width of {hidden_dim}. Leave n_heads out."
            )
        return stored or n_heads

    def stored_heads(self, hidden_dim: int) -> int | None:
        """Return the number of heads by the rotary frequencies 10000^(-2j / head_dim), if the file has them.

        Raises:
            ValueError: they are other frequencies, which our models do not have, or do not divide
                the width.
        """
        if self.rotary is None:
            return None

        # (head_dim / 2,)
        # A tolerance of 1 %, because the file may hold them in 16 bits
        count = self.rotary.numel()
        published = 10000.0 ** (-torch.arange(count) / count)
        same_shape = self.rotary.shape == published.shape
        if not same_shape or not torch.allclose(self.rotary.float(), published, rtol=1e-2):
            raise ValueError(
                "rotary_emb.inv_freq does not hold the published frequencies 10000^(-2j / head_dim), the only ones "
                "these models have. A checkpoint of another architecture cannot be converted."
            )

        # A frequency turns two channels of a head
        head_dim = 2 * count
        if hidden_dim % head_dim:
            raise ValueError(
                f"rotary_emb.inv_freq has {count} entries, so a head has {head_dim} channels, but the width of "
                f"{hidden_dim} is no multiple of that. A checkpoint of another architecture cannot be converted."
            )
        return hidden_dim // head_dim

    def file_names(self, names: Iterable[str]) -> list[str]:
        """Return the keys in the file of parameters of the model."""
        return [self.prefix + name for name in names]


def split_networks(state_dict: dict[str, torch.Tensor]) -> list[Network]:
    """Return the network of a `state_dict`, or a denoiser and its NCE energy in this order.

    Raises:
        ValueError: keys that belong to no network, an energy that is not an NCE network, or copies
            of it that differ.
    """
    check_all_used(missing=[], extra=[key for key, x in state_dict.items() if not is_expected(key, x)])

    # EDLM files hold the energy under one or both of these
    copy_one = under(state_dict, "ebm.")
    copy_two = under(state_dict, "backbone.ebm.")
    if not copy_one and not copy_two:
        return [single_network(state_dict)]

    if copy_one and copy_two:
        check_same(copy_one, copy_two)
    energy = copy_one or copy_two
    if not any(name.startswith(("vocab_proj.", "energy_head.")) for name in energy):
        raise ValueError(
            "The energy of this EDLM checkpoint (ebm.*) is no NCE network: it has neither vocab_proj nor energy_head. "
            "For an autoregressive energy convert the checkpoints of the denoiser and of the autoregressive model, and "
            "combine them with EDLMForMaskedDiffusion.from_components(denoiser, autoregressive, energy_type='ar')."
        )

    # The denoiser is what else is under backbone.
    wrapped = under(state_dict, "backbone.")
    denoiser = {name: x for name, x in wrapped.items() if not name.startswith("ebm.")}
    energy_prefix = "ebm." if copy_one else "backbone.ebm."
    return [
        Network(MDLMForMaskedLM, "backbone.", denoiser),
        Network(EDLMEnergyModel, energy_prefix, energy),
    ]


def is_expected(key: str, tensor: torch.Tensor) -> bool:
    """Whether a key belongs to a network, or to a scalar of the noise schedule, which is not needed."""
    if key.startswith("noise."):
        return tensor.numel() == 1
    return key.startswith(("backbone.", "ebm."))


def under(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the tensors whose keys start with `prefix`, by the rest of their keys."""
    return {key.removeprefix(prefix): x for key, x in state_dict.items() if key.startswith(prefix)}


def single_network(state_dict: dict[str, torch.Tensor]) -> Network:
    """Return the denoiser or, without weights for the noise level, the autoregressive model."""
    weights = {key: x for key, x in state_dict.items() if key.startswith("backbone.")}
    conditioned = any("sigma_map." in key or "adaLN_modulation." in key for key in weights)
    model_class = MDLMForMaskedLM if conditioned else MDLMForCausalLM
    return Network(model_class, prefix="", weights=weights)


def check_same(copy_one: dict[str, torch.Tensor], copy_two: dict[str, torch.Tensor]) -> None:
    """Raise ValueError with every weight in which two copies of the energy differ."""
    # Keys of one copy alone, then weights that are not equal bit for bit
    differing = sorted(copy_one.keys() ^ copy_two.keys())
    for name, weight in copy_one.items():
        if name in copy_two and not torch.equal(weight, copy_two[name]):
            differing.append(name)

    if differing:
        raise ValueError(
            "The checkpoint holds the energy network twice, under ebm. and backbone.ebm., but the copies differ: "
            "delete the one that was not trained from its state_dict and save it again. "
            f"{list_names('Differing', differing)}"
        )


def apply_averaged_weights(networks: list[Network], averaged: list[torch.Tensor]) -> None:
    """Replace weights by the averaged ones, which have no names, but the order of `parameters()`.

    They cover the parameters that were being trained: one network, or all of them.

    Raises:
        ValueError: they fit neither by number and shape.
    """
    shapes = [average.shape for average in averaged]

    # Each network alone, then all of them, one after the other in the order of the file
    choices = [[network] for network in networks]
    choices.append(networks)
    for covered in choices:
        entries = [(network.weights, name) for network in covered for name in network.weights]
        if shapes != [weights[name].shape for weights, name in entries]:
            continue

        for (weights, name), average in zip(entries, averaged, strict=True):
            weights[name] = average
        return

    counts = " and ".join(f"{len(network.weights)} ({network.model_class.__name__})" for network in networks)
    raise ValueError(
        f"The checkpoint has {len(averaged)} averaged (EMA) tensors, which fit its networks neither by number nor by "
        f"shape: they have {counts}. Pass use_ema=False to convert the plain weights."
    )


def check_all_used(missing: list[str], extra: list[str]) -> None:
    """Raise ValueError with every name if there is one."""
    listed = []
    if missing:
        listed.append(list_names("Missing", missing))
    if extra:
        listed.append(list_names("Left over", extra))

    if listed:
        raise ValueError(
            f"The keys of the checkpoint are not those of the published networks. {' '.join(listed)} Only "
            "rotary_emb.inv_freq and scalars under noise. may be there besides."
        )


__all__ = ["apply_averaged_weights", "split_networks"]
