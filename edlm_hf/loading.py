"""Models and tokenizers by name: the one place from which every command loads.

Errors of the libraries become sentences that name the file (see `edlm_hf.loading_errors`).
"""

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from edlm_hf.adapter_loading import arguments_of_base, base_of_adapter, scope_of_adapter, with_adapter
from edlm_hf.energy_adapters import merge_lora
from edlm_hf.loading_errors import load
from edlm_hf.modeling import components
from edlm_hf.modeling.component_checks import check_causal
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.vocabulary import fit_to_tokenizer
from edlm_hf.tokenization import add_mask_token

logger = logging.get_logger(__name__)
OUR_MODEL_TYPES = ("mdlm", "edlm")


def load_config(name: str, **kwargs) -> PreTrainedConfig:
    """Load a configuration, of an adapter the one of its base. Arguments and errors are as in `load`."""
    base = base_of_adapter(name, components.location_of(kwargs))
    if base is not None:
        return load_config(base, **arguments_of_base(kwargs))
    return load(AutoConfig.from_pretrained, name, **kwargs)


def load_tokenizer(name: str, **kwargs) -> PreTrainedTokenizerBase:
    """Load a tokenizer, of an adapter the one of its base. Arguments and errors are as in `load`."""
    base = base_of_adapter(name, components.location_of(kwargs))
    if base is not None:
        return load_tokenizer(base, **arguments_of_base(kwargs))
    return load(AutoTokenizer.from_pretrained, name, **kwargs)


def load_with_tokenizer(
    name: str, tokenizer: str | None = None, **kwargs
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked diffusion model and its tokenizer, which has a mask token.

    Args:
        tokenizer: name of the tokenizer where it is not beside the model.
        name, kwargs: as in `load_masked`.
    """
    location = components.location_of(kwargs)

    # The configuration first: a tokenizer loads in spite of a damaged one
    load_config(name, **location)
    encoder = add_mask_token(load_tokenizer(tokenizer or name, **location))
    return load_masked(name, encoder, **kwargs), encoder


def load_masked(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_energy_code: bool = False,
    **kwargs,
) -> PreTrainedModel:
    """Load a masked diffusion model, which has `generate()`.

    A model of this package is loaded as it is, any other masked language model as the denoiser of a
    composite. An adapter is merged into its base.

    Args:
        name: folder, repository of the Hub, or a checkpoint that ships.
        tokenizer: the tokenizer of its texts. It says which token is the mask where the model does
            not. If it is needed and not given, the one of `name` is loaded.
        trust_energy_code: of `EDLMForMaskedDiffusion.from_pretrained`.
        kwargs: of any `from_pretrained`.

    Raises:
        ValueError: the model cannot be loaded or is causal, or model and tokenizer have different
            mask tokens.
    """
    location = components.location_of(kwargs)
    base = base_of_adapter(name, location)
    if base is not None:
        return load_adapted(name, base, tokenizer, **kwargs)
    model_type = load_config(name, **location).model_type

    if model_type == "edlm":
        kwargs["trust_energy_code"] = trust_energy_code
    if model_type in OUR_MODEL_TYPES:
        model = load(AutoModelForMaskedLM.from_pretrained, name, **kwargs)
    else:
        network = load(components.load_denoiser, name, **kwargs)
        if tokenizer is None:
            tokenizer = add_mask_token(load_tokenizer(name, **location))
        model = as_masked_diffusion(network, tokenizer)

    if tokenizer is not None and tokenizer.mask_token_id is not None:
        fit_to_tokenizer(model, tokenizer)
    return model


def load_adapted(
    name: str,
    base: str,
    tokenizer: PreTrainedTokenizerBase | None,
    **kwargs,
) -> PreTrainedModel:
    """Load an adapter merged into its base.

    Args:
        name, tokenizer, kwargs: as in `load_masked`.
    """
    whole = load_base(name, base, tokenizer, **kwargs)
    return merge_lora(with_adapter(whole, name, components.location_of(kwargs)))


def load_base(name: str, base: str, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs) -> PreTrainedModel:
    """Load the base of an adapter, for the energy scope that the adapter was trained for.

    Args:
        name, tokenizer, kwargs: as in `load_masked`.
    """
    location = components.location_of(kwargs)
    of_base = arguments_of_base(kwargs)
    scope = scope_of_adapter(name, location)
    if scope is not None:
        of_base.setdefault("energy_scope", scope)

    whole = load_masked(base, tokenizer, **of_base)
    if "energy_scope" not in of_base and getattr(whole.config, "energy_type", None) == "nce":
        logger.warning(
            f"Nothing says for which energy_scope the adapter {name} was trained: that of its base is taken, "
            f"{whole.config.energy_scope!r}."
        )
    return whole


def load_energy(name: str, **kwargs) -> PreTrainedModel:
    """Load a model to train its energy further. Arguments and errors are as in `load`.

    Returns:
        the model, for an adapter a `PeftModel` whose adapter is trained.
    """
    base = base_of_adapter(name, {})
    if base is None:
        return load(AutoModelForMaskedLM.from_pretrained, name, **kwargs)
    return with_adapter(load_base(name, base, **kwargs), name, {}, is_trainable=True)


def load_denoiser(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """Load the denoiser of a model, to be trained or to get an energy. Arguments are as in `load_masked`."""
    model = load_masked(name, tokenizer)
    if not isinstance(model, EDLMForMaskedDiffusion):
        return model
    if isinstance(model.denoiser, MDLMForMaskedLM):
        return model.denoiser

    # A denoiser of another package keeps its composite, which knows mask token and noise schedule
    config = model.config
    without_energy = EDLMForMaskedDiffusion.from_components(
        model.denoiser, mask_token_id=config.mask_token_id, logits_shift=config.logits_shift
    )
    without_energy.config.noise_schedule = config.noise_schedule
    without_energy.config.noise_schedule_params = config.noise_schedule_params
    return without_energy


def load_causal(name: str, **kwargs) -> PreTrainedModel:
    """Load a causal language model.

    Raises:
        ValueError: it cannot be loaded, or sees the tokens that it is to predict.
    """
    model = load(AutoModelForCausalLM.from_pretrained, name, **kwargs)
    if model.config.model_type not in OUR_MODEL_TYPES:
        check_causal(model)
    return model


def as_masked_diffusion(network: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> nn.Module:
    """Return a masked diffusion model with `network` as its denoiser.

    A network that knows its noise schedule is returned as it is. Any other masked language model
    becomes the denoiser of a composite without energy, which can be trained, saved, loaded and asked
    to generate.

    Raises:
        ValueError: nothing says which token is the mask, the network is causal, or it could not be
            saved.
    """
    if getattr(network.config, "model_type", None) in OUR_MODEL_TYPES:
        return network

    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"The model is a {type(network).__name__}, of which no folder could be saved that loads again. Give a "
            "model of transformers (merge adapters first), or one of this package."
        )
    if tokenizer is None and getattr(network.config, "mask_token_id", None) is None:
        raise ValueError(
            f"Nothing says which token is the mask of the {type(network).__name__}. Give its tokenizer "
            "(processing_class=tokenizer), or set model.config.mask_token_id."
        )
    return EDLMForMaskedDiffusion.from_components(network, tokenizer=tokenizer)


__all__ = [
    "as_masked_diffusion",
    "load",
    "load_causal",
    "load_config",
    "load_denoiser",
    "load_energy",
    "load_masked",
    "load_tokenizer",
    "load_with_tokenizer",
]
