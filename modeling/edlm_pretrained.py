"""The base class of composites: how their parts are loaded and saved as one checkpoint."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .checkpoints import CheckpointingMixin, list_keys, set_auto_map
from .components import HUB_ARGUMENTS, load_causal
from .configuration_edlm import EDLMConfig
from .foreign_denoisers import check_bidirectional
from .mdlm_pretrained import MDLMPreTrainedModel, is_of_transformers
from .network_facts import device_of


class EDLMPreTrainedModel(CheckpointingMixin, PreTrainedModel):
    """A model of two parts, `denoiser` and `energy_model`, of which the second may be None."""

    config: EDLMConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def init_weights(self):
        """Leave the parts as they are: they start and tie their weights when they are made."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info=False,
        trust_energy_code: bool = False,
        **kwargs,
    ):
        """Load all by `PreTrainedModel.from_pretrained`, and the AR energy that it refers to.

        Args:
            trust_energy_code: run the code in the repository of an energy kept by
                reference. Whoever wrote the configuration chose that repository:
                `trust_remote_code` does not reach it. Pin the code that you have read by
                `energy_revision`.

        Raises:
            ValueError: the file lacks a weight of the model or has one too many, or the energy
                needs code that is not trusted, or is itself a composite.
        """
        # 1. The stored parts, strictly
        path = pretrained_model_name_or_path
        model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)

        missing = set(info["missing_keys"])
        unexpected = set(info["unexpected_keys"])
        if path is not None and (missing or unexpected):
            advice = "Save it again with save_pretrained, or check energy_type and the two sub-configurations."
            if any(".lora_" in key for key in missing):
                advice = "These are of an adapter: load its base, then the adapter with PeftModel.from_pretrained."
            raise ValueError(
                f"The weights of {path} do not fit its configuration: "
                f"{list_keys('missing', missing)}{list_keys('not part of the model', unexpected)}{advice}"
            )

        # 2. An energy kept by reference
        config = model.config
        if config.energy_name_or_path is not None and model.energy_model is None:
            taken_over = ("dtype", "torch_dtype", "device_map", "attn_implementation", *HUB_ARGUMENTS)
            model.energy_model = load_causal(
                config.energy_name_or_path,
                revision=config.energy_revision or "main",
                trust_remote_code=trust_energy_code,
                **{name: kwargs[name] for name in taken_over if name in kwargs},
            )
            config.energy_config = model.energy_model.config
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the whole by `PreTrainedModel.save_pretrained`, with the code beside it.

        Raises:
            ValueError: the whole could not be loaded again: a part is neither from this package nor
                from transformers, the denoiser's configuration is of a causal model, the parts have
                different precisions, or the energy shares the weights of another denoiser.
        """
        self.check_loadable()

        # 1. The configurations of the parts as they are now. The code of the whole is beside them.
        self.config.denoiser_config = self.denoiser.config
        if self.energy_model is not None and self.config.energy_weights == "own":
            self.config.energy_config = self.energy_model.config
        set_auto_map(self)
        for part in self._stored_parts().values():
            part.config.dtype = part.dtype
            part.config.__dict__.pop("auto_map", None)

        # 2. Their weights
        if self.config.energy_name_or_path is not None:
            # An energy kept by reference stays in its own repository
            weights = kwargs.get("state_dict") or self.state_dict()
            of_energy = {name for name in weights if name.startswith("energy_model.")}
            kept = {name: weight for name, weight in weights.items() if name not in of_energy}
            kwargs["state_dict"] = kept
        super().save_pretrained(save_directory, *args, **kwargs)

    def _stored_parts(self) -> dict[str, nn.Module]:
        """The parts by their names, without an energy that is kept by reference."""
        stored = {"denoiser": self.denoiser}
        if self.energy_model is not None and self.config.energy_name_or_path is None:
            stored["energy_model"] = self.energy_model
        return stored

    def check_loadable(self) -> None:
        """Refuse parts that would be saved, but could not be loaded again.

        Raises:
            ValueError: as `save_pretrained`.
        """
        # Code that is neither beside the weights nor installed
        stored = self._stored_parts()
        for name, part in stored.items():
            if not is_of_transformers(part):
                raise ValueError(
                    f"The {name} is a {type(part).__module__}.{type(part).__name__}, whose code is not part of this "
                    "package or of transformers, so the whole could not be loaded again. Save that part by itself and "
                    "use from_components after loading it."
                )
        if not isinstance(self.denoiser, MDLMPreTrainedModel):
            check_bidirectional(self.denoiser.config)

        # transformers loads all weights in the one precision that the configuration says
        dtypes = {name: part.dtype for name, part in stored.items()}
        if len(set(dtypes.values())) > 1:
            raise ValueError(
                f"The parts have different precisions ({dtypes}), but a checkpoint has one. Cast the whole, for "
                "example with model.to(torch.bfloat16)."
            )

        # A shared trunk is stored once, as a part of the denoiser
        shares = self.config.energy_weights == "shared"
        if shares and self.energy_model.trunk is not self.denoiser.backbone:
            raise ValueError(
                "energy_weights='shared', but the energy reads the trunk of another denoiser than model.denoiser. Put "
                "them together with from_components."
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.denoiser.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.denoiser.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.denoiser.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.denoiser.set_output_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resize the vocabulary of both parts. The mask token keeps its id."""
        embeddings = self.denoiser.resize_token_embeddings(*args, **kwargs)
        if self.energy_model is not None and self.config.energy_weights == "own":
            self.energy_model.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.denoiser.config.vocab_size
        return embeddings

    @property
    def vocab_size(self) -> int | None:
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """The device on which the parts compute, also while their weights are offloaded.

        It is the CPU for parts without weights.
        """
        return device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the first floating-point parameter or buffer."""
        floats = (x.dtype for x in (*self.parameters(), *self.buffers()) if x.is_floating_point())
        return next(floats, torch.get_default_dtype())
