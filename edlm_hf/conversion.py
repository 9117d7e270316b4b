"""Lightning checkpoints (.ckpt) of the MDLM and EDLM repositories, turned into models that `from_pretrained` loads.

A denoiser, an autoregressive baseline and an EDLM with an NCE energy are told apart by their keys, and sizes come from
tensor shapes. What the weights do not say (length, mask token, time conditioning, noise schedule) is for the caller to
give. Nothing in the file is executed or imported (see `edlm_hf.lightning`).
"""

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from edlm_hf.lightning import Checkpoint
from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.energy_edlm import EDLMEnergyModel
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.terminal import list_names

logger = logging.get_logger(__name__)


def convert_lightning_checkpoint(
    path: str | Path,
    output_dir: str | Path,
    *,
    use_ema: bool = True,
    model_length: int = 1024,
    mask_token_id: int | None = None,
    time_conditioning: bool = False,
    noise_schedule: str = "loglinear",
    n_heads: int | None = None,
    dropout: float = 0.1,
) -> PreTrainedModel:
    """Write the model of a Lightning checkpoint to `output_dir` in the transformers format, and return it.

    Args:
        path: a .ckpt file as the MDLM or EDLM repository writes it.
        output_dir: new or empty folder; it appears when everything in it is complete.
        use_ema: take the averaged weights where the file has them, as the published evaluation does.
        model_length: longest sequence the model was trained on.
        mask_token_id: the last id of the vocabulary unless given.
        time_conditioning: whether the denoiser (and the energy) was trained with the noise level as input.
        noise_schedule: the schedule of the training run.
        n_heads: needed only where the file lacks `rotary_emb.inv_freq`, which tells the size of a head.
        dropout: of the residual branches, for further training.

    Returns:
        `MDLMForMaskedLM`, `MDLMForCausalLM` (no conditioning weights in the file) or `EDLMForMaskedDiffusion` with
        an NCE energy (weights under `ebm.`), in eval mode.

    Raises:
        ValueError: the output folder is not empty; the file is not such a checkpoint or cannot be read safely; keys
            are missing or left over, a weight is no dense floating-point tensor, shapes or the two copies of the
            energy disagree, the averaged weights fit no part of the model, or the number of heads is unknown. Nothing
            is written then.
        FileNotFoundError: there is no file `path`.
    """
    target = Path(output_dir).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output_dir {output_dir} exists and is not an empty folder. Give a new folder.")
    checkpoint = Checkpoint(path)
    networks = split_networks(checkpoint.weights())
    options = {
        "model_length": model_length,
        "mask_token_id": mask_token_id,
        "time_conditioning": time_conditioning,
        "noise_schedule": noise_schedule,
        "dropout": dropout,
    }
    models = [network.new_model(n_heads, options) for network in networks]
    if use_ema:
        apply_averaged_weights(networks, checkpoint.averaged_weights())
    for network, model in zip(networks, models, strict=True):
        model.load_state_dict(network.weights, strict=True)
    model = models[0]
    if len(models) == 2:
        model = EDLMForMaskedDiffusion.from_components(*models, energy_type="nce", mask_token_id=mask_token_id)
    model.eval()

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        complete = Path(staging, target.name)
        model.save_pretrained(complete)
        if target.exists():
            target.rmdir()
        complete.rename(target)
    return model


# ------------------------------------------------------------------------------------------------ networks of the file


@dataclass
class Network:
    """One network of a checkpoint.

    Args:
        model_class: what it becomes.
        prefix: what the file puts in front of the model's own names.
        weights: parameters by the model's names, in the order of the file, which is that of `parameters()`.
        rotary: the stored rotary frequencies (head_dim / 2,), if any.
    """

    model_class: type[PreTrainedModel]
    prefix: str
    weights: dict[str, torch.Tensor]
    rotary: torch.Tensor | None = None

    def __post_init__(self):
        for name in [name for name in self.weights if name.endswith("rotary_emb.inv_freq")]:
            self.rotary = self.weights.pop(name)

    def new_model(self, n_heads: int | None, options: dict) -> PreTrainedModel:
        """A new model of the right sizes that takes exactly these weights; `options` are further fields of its config.

        Raises:
            ValueError: a key is missing or left over, or a shape differs (all are listed); the number of heads is
                unknown; an autoregressive model with `time_conditioning`.
        """
        causal = self.model_class is MDLMForCausalLM
        if causal and options["time_conditioning"]:
            raise ValueError(
                "time_conditioning=True, but the file holds an autoregressive model (it has no sigma_map), which sees "
                "no noise level. Leave time_conditioning out."
            )
        config = MDLMConfig(**self.sizes(n_heads), **options, causal=causal)
        expected = self.expected_shapes(config)
        missing = [name for name in expected if name not in self.weights]
        extra = [name for name in self.weights if name not in expected]
        check_all_used(self.file_names(missing), self.file_names(extra))
        wrong = [
            f"{self.prefix}{name} is {tuple(x.shape)}, not {expected[name]}"
            for name, x in self.weights.items()
            if tuple(x.shape) != expected[name]
        ]
        if wrong:
            raise ValueError(f"The shapes in the checkpoint contradict each other. {list_names('Wrong', wrong)}")
        return self.model_class(config)

    def expected_shapes(self, config: MDLMConfig) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name, without the memory of a model: the file may claim any sizes.

        All blocks are alike, so that a model of one block, on the meta device, tells the shapes.
        """
        smallest = copy.deepcopy(config)
        smallest.n_blocks = min(config.n_blocks, 1)
        with torch.device("meta"):
            shapes = {name: tuple(x.shape) for name, x in self.model_class(smallest).state_dict().items()}

        expected = {}
        for name, shape in shapes.items():
            before, is_of_block, after = name.partition("blocks.0.")
            for i in range(config.n_blocks) if is_of_block else (0,):
                expected[f"{before}blocks.{i}.{after}" if is_of_block else name] = shape
        return expected

    def sizes(self, n_heads: int | None) -> dict[str, int]:
        """The fields of `MDLMConfig` that the shapes tell.

        Raises:
            ValueError: the embedding is missing, or the number of heads is unknown or contradicts the file.
        """
        trunk = "" if self.model_class is EDLMEnergyModel else "backbone."
        shapes = {name.removeprefix(trunk): tuple(x.shape) for name, x in self.weights.items()}
        if len(shapes.get("vocab_embed.embedding", ())) != 2:
            check_all_used(self.file_names([f"{trunk}vocab_embed.embedding"]), [])
        vocab_size, hidden_dim = shapes["vocab_embed.embedding"]
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
        sizes = {"vocab_size": vocab_size, "hidden_dim": hidden_dim, "n_heads": stored or n_heads}
        sizes["n_blocks"] = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        if shapes.get("sigma_map.mlp.0.weight"):
            sizes["cond_dim"] = shapes["sigma_map.mlp.0.weight"][0]
        return sizes

    def stored_heads(self, hidden_dim: int) -> int | None:
        """The number of heads by the rotary frequencies 10000^(-2j / head_dim), if the file has them.

        Raises:
            ValueError: they are other frequencies, which our models do not have, or do not divide the width.
        """
        if self.rotary is None:
            return None
        count = self.rotary.numel()  # head_dim / 2
        published = 10000.0 ** (-torch.arange(count) / count)
        same_shape = self.rotary.shape == published.shape
        if not same_shape or not torch.allclose(self.rotary.float(), published, rtol=1e-2):
            raise ValueError(
                "rotary_emb.inv_freq does not hold the published frequencies 10000^(-2j / head_dim), the only ones "
                "these models have. A checkpoint of another architecture cannot be converted."
            )
        if hidden_dim % (2 * count):
            raise ValueError(
                f"rotary_emb.inv_freq has {count} entries, so a head has {2 * count} channels, but the width of "
                f"{hidden_dim} is no multiple of that. A checkpoint of another architecture cannot be converted."
            )
        return hidden_dim // (2 * count)

    def file_names(self, names: Iterable[str]) -> list[str]:
        return [self.prefix + name for name in names]


def split_networks(state_dict: dict[str, torch.Tensor]) -> list[Network]:
    """The denoiser or the autoregressive model of a `state_dict`; or a denoiser and its NCE energy, in this order.

    Raises:
        ValueError: keys that belong to no network, an energy that is no NCE network, or copies of it that differ.
    """

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}

    extra = [
        name
        for name, x in state_dict.items()
        if not name.startswith(("backbone.", "ebm.")) and not (name.startswith("noise.") and x.numel() == 1)
    ]
    check_all_used([], extra)
    first, second = under("ebm."), under("backbone.ebm.")
    if not (first or second):
        whole = {name: x for name, x in state_dict.items() if name.startswith("backbone.")}
        conditioned = any("sigma_map." in name or "adaLN_modulation." in name for name in whole)
        return [Network(MDLMForMaskedLM if conditioned else MDLMForCausalLM, "", whole)]
    if first and second:
        differing = sorted(first.keys() ^ second.keys())
        differing += [name for name in first if name in second and not torch.equal(first[name], second[name])]
        if differing:
            raise ValueError(
                "The checkpoint holds the energy network twice, under ebm. and backbone.ebm., but the copies differ: "
                "delete the one that was not trained from its state_dict and save it again. "
                f"{list_names('Differing', differing)}"
            )
    energy = first or second
    if not any(name.startswith(("vocab_proj.", "energy_head.")) for name in energy):
        raise ValueError(
            "The energy of this EDLM checkpoint (ebm.*) is no NCE network: it has neither vocab_proj nor energy_head. "
            "For an autoregressive energy convert the checkpoints of the denoiser and of the autoregressive model, and "
            "combine them with EDLMForMaskedDiffusion.from_components(denoiser, autoregressive, energy_type='ar')."
        )
    denoiser = {name: x for name, x in under("backbone.").items() if not name.startswith("ebm.")}
    return [
        Network(MDLMForMaskedLM, "backbone.", denoiser),
        Network(EDLMEnergyModel, "ebm." if first else "backbone.ebm.", energy),
    ]


def apply_averaged_weights(networks: list[Network], averaged: list[torch.Tensor] | None) -> None:
    """Replace the weights by the averaged ones, which have no names, but the order of `parameters()`.

    They cover the parameters that were being trained: one network, or all of them.

    Raises:
        ValueError: they fit neither by number and shape.
    """
    if averaged is None:
        logger.warning("The checkpoint has no averaged (EMA) weights: its plain weights are converted.")
        return
    for covered in [[network] for network in networks] + [networks]:
        slots = [(network.weights, name) for network in covered for name in network.weights]
        if [x.shape for x in averaged] == [weights[name].shape for weights, name in slots]:
            for (weights, name), average in zip(slots, averaged, strict=True):
                weights[name] = average
            return
    counts = " and ".join(f"{len(network.weights)} ({network.model_class.__name__})" for network in networks)
    raise ValueError(
        f"The checkpoint has {len(averaged)} averaged (EMA) tensors, which fit its networks neither by number nor by "
        f"shape: they have {counts}. Pass use_ema=False to convert the plain weights."
    )


def check_all_used(missing: list[str], extra: list[str]) -> None:
    """Raises ValueError with every name if there is one."""
    if missing or extra:
        found = [list_names(title, names) for title, names in (("Missing", missing), ("Left over", extra)) if names]
        raise ValueError(
            f"The keys of the checkpoint are not those of the published networks. {' '.join(found)} Only "
            "rotary_emb.inv_freq and scalars under noise. may be there besides."
        )
