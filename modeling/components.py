"""The parts of a composite: built from a configuration, or loaded by name."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from .configuration_edlm import ENERGY_TYPES, EDLMConfig, PlainModuleConfig, check_choice
from .configuration_mdlm import MDLMConfig
from .foreign_denoisers import build_foreign_denoiser
from .modeling_mdlm import MDLMForMaskedLM
from .modeling_mdlm_causal import MDLMForCausalLM
from .network_energy import EDLMEnergyModel
from .network_facts import num_ids
from .shared_energy import EDLMSharedEnergyModel
from .vocabulary import absent_ids, check_mask_token

# Arguments of from_pretrained that say where something is
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
FILE_ARGUMENTS = (*HUB_ARGUMENTS, "revision")
LOCATION_ARGUMENTS = (*FILE_ARGUMENTS, "trust_remote_code")

# Files of which a repository with a tokenizer has at least one
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")


def build_denoiser(config: EDLMConfig) -> PreTrainedModel:
    """A denoiser with random weights."""
    if config.denoiser_config.model_type == MDLMConfig.model_type:
        return MDLMForMaskedLM(config.denoiser_config)
    return build_foreign_denoiser(config.denoiser_config)


def build_energy(config: EDLMConfig, denoiser: nn.Module) -> PreTrainedModel | None:
    """An energy with random weights. None without one, or where it is kept by reference."""
    if config.energy_type == "none" or config.energy_name_or_path is not None:
        return None
    if config.energy_weights == "shared":
        return EDLMSharedEnergyModel(denoiser.backbone, config.energy_adapter_rank)
    if config.energy_type == "nce":
        return EDLMEnergyModel(config.energy_config)

    if config.energy_config.model_type == MDLMConfig.model_type:
        return MDLMForCausalLM(config.energy_config)
    return AutoModelForCausalLM.from_config(config.energy_config, trust_remote_code=False)


def location_of(kwargs: dict) -> dict:
    """The arguments of `from_pretrained` that say where a part is."""
    return {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}


def location_of_files(kwargs: dict) -> dict:
    """The same for files by name, which no code is needed for."""
    return {name: kwargs[name] for name in FILE_ARGUMENTS if name in kwargs}


def load_denoiser(name: str, **kwargs) -> PreTrainedModel:
    """A masked language model by name. Diffusion models are found under several auto classes.

    Raises:
        ValueError: the name belongs to something else than a language model.
    """
    # A class counts if transformers knows it, or if the repository brings its own code for it.
    config = AutoConfig.from_pretrained(name, **location_of(kwargs))
    in_own_code = getattr(config, "auto_map", None) or {}
    for auto_class in (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModel):
        in_transformers = type(config) in auto_class._model_mapping
        if in_transformers or auto_class.__name__ in in_own_code:
            return auto_class.from_pretrained(name, **kwargs)

    raise ValueError(f"{name} (model_type {config.model_type!r}) has no language model to load as the denoiser.")


def load_energy(
    energy: nn.Module | str | None,
    energy_type: str | None,
    tokenizer,
    kwargs: dict,
) -> tuple[nn.Module | None, str, object]:
    """The energy, its type and its tokenizer, loaded where they are names.

    Args:
        energy_type: follows from the energy unless given.
        kwargs: of `from_pretrained`, with `trust_energy_code` as `trust_remote_code`.

    Raises:
        ValueError: the energy needs code that is not trusted, or the type is not known.
    """
    # 1. The tokenizer, which may need code of a repository too
    name = tokenizer if isinstance(tokenizer, str) else energy
    with explained_trust(name):
        tokenizer = load_tokenizer(tokenizer, energy, kwargs)

    # 2. The type, which decides the class of a named energy
    if energy_type is None:
        energy_type = default_energy_type(energy)
    check_choice("energy_type", energy_type, ENERGY_TYPES)

    # 3. The energy
    if isinstance(energy, str) and energy_type == "nce":
        energy = EDLMEnergyModel.from_pretrained(energy, **kwargs)
    elif isinstance(energy, str):
        energy = load_causal(energy, **kwargs)
    return energy, energy_type, tokenizer


def default_energy_type(energy: nn.Module | str | None) -> str:
    """The type that follows from an energy. A name stands for a causal language model."""
    if energy is None:
        return "none"
    return "nce" if isinstance(energy, EDLMEnergyModel) else "ar"


def config_of_parts(
    denoiser: nn.Module,
    energy: nn.Module | None,
    tokenizer,
    **choices,
) -> EDLMConfig:
    """The configuration of a composite of given parts, with the `choices` of `EDLMConfig`.

    Raises:
        ValueError: the tokenizer means another token by "mask" than the denoiser.
    """
    # The denoiser says which token is its mask. Only where it does not, the tokenizer counts.
    denoiser_config = config_of_part(denoiser)
    if choices["mask_token_id"] is None and getattr(denoiser_config, "mask_token_id", None) is None:
        choices["mask_token_id"] = getattr(tokenizer, "mask_token_id", None)

    # The attention with which the parts were built: another one would be set in them too.
    attention = {
        "": attention_of_part(denoiser),
        "denoiser_config": attention_of_part(denoiser),
        "energy_config": attention_of_part(energy),
    }
    config = EDLMConfig(
        denoiser_config=denoiser_config,
        energy_config=None if energy is None else config_of_part(energy),
        absent_token_ids=None if tokenizer is None else absent_ids(tokenizer, num_ids(denoiser)),
        attn_implementation=attention,
        **choices,
    )
    if tokenizer is not None:
        check_mask_token(tokenizer, config, required=False)
    return config


def load_causal(name: str, **kwargs) -> PreTrainedModel:
    """An autoregressive energy by name, with `trust_energy_code` as `trust_remote_code`.

    Raises:
        ValueError: it needs code that is not trusted, or is a composite, which might refer to
            itself.
    """
    with explained_trust(name):
        config = AutoConfig.from_pretrained(name, **location_of(kwargs))
        if config.model_type == EDLMConfig.model_type:
            raise ValueError(
                f"The energy {name!r} is itself a composite of denoiser and energy. Give a causal language model."
            )
        return AutoModelForCausalLM.from_pretrained(name, config=config, **kwargs)


@contextmanager
def explained_trust(energy: str | None) -> Iterator[None]:
    """Where transformers refuses to run the code of an energy, name the argument that allows it."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"The energy {energy!r} needs the code in its repository, which trust_remote_code of "
            "the whole does not allow. Read that code, and pass trust_energy_code=True with the "
            "commit as energy_revision; or load the energy yourself, and give the model to "
            "from_components."
        ) from error


def load_tokenizer(tokenizer, component, kwargs: dict):
    """The given tokenizer, or the one that belongs to a component, or None.

    Args:
        tokenizer: a tokenizer, a name, or None for the one beside the component.
        component: a model or a name. Only beside a name is a tokenizer looked for.
        kwargs: of `from_pretrained`.
    """
    location = location_of(kwargs)
    if isinstance(tokenizer, str):
        return AutoTokenizer.from_pretrained(tokenizer, **location)
    if tokenizer is not None or not isinstance(component, str):
        return tokenizer

    # A repository without a tokenizer is not asked for one.
    where = location_of_files(kwargs)
    for file in TOKENIZER_FILES:
        path = cached_file(component, file, _raise_exceptions_for_missing_entries=False, **where)
        if path is not None:
            return AutoTokenizer.from_pretrained(component, **location)
    return None


def config_of_part(module: nn.Module) -> PreTrainedConfig:
    """The configuration of a part, or the facts that a plain module states about itself."""
    config = getattr(module, "config", None)
    if isinstance(config, PreTrainedConfig):
        return config

    # A module of others may have a configuration of any class, or none
    facts = {name: getattr(config, name, None) for name in PlainModuleConfig.__annotations__}
    facts["vocab_size"] = facts["vocab_size"] or getattr(module, "vocab_size", None)
    return PlainModuleConfig(**facts)


def reference_name(energy: nn.Module | None) -> str:
    """The repository or folder that an energy was loaded from.

    Raises:
        ValueError: it was not loaded.
    """
    name = getattr(getattr(energy, "config", None), "_name_or_path", None)
    if not name:
        raise ValueError(
            "energy_by_reference=True, but the energy was not loaded from a repository or folder, "
            "so there is nothing to refer to. Give its name as `energy`, or store it inside "
            "(energy_by_reference=False)."
        )
    return name


def attention_of_part(part: nn.Module | None) -> str | None:
    """The implementation of attention that a part was built with."""
    return getattr(getattr(part, "config", None), "_attn_implementation", None)
