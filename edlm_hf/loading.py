"""Models and tokenizers by name: the one place from which every command loads, and says what cannot be loaded."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
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

from edlm_hf.checkpoints import locate
from edlm_hf.errors import is_out_of_memory, one_line
from edlm_hf.files import fault_of
from edlm_hf.modeling import components
from edlm_hf.modeling.component_checks import check_causal
from edlm_hf.modeling.generation_edlm import EDLMGenerationConfig
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.vocabulary import fit_to_tokenizer
from edlm_hf.published_denoisers import published_family
from edlm_hf.tokenization import add_mask_token

OURS = ("mdlm", "edlm")
# What describes a model and is read before all else: libraries pass over some of it where it is damaged
DESCRIPTIONS = ("config.json", "generation_config.json", "*.index.json")
FILES = (*DESCRIPTIONS, "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FILES += ("added_tokens.json", "vocab.json", "*.safetensors", "pytorch_model*.bin")
ARGUMENTS_OF_PLACES = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only")


def load_config(name: str, **kwargs) -> PreTrainedConfig:
    return load(AutoConfig.from_pretrained, name, **kwargs)


def load_tokenizer(name: str, **kwargs) -> PreTrainedTokenizerBase:
    return load(AutoTokenizer.from_pretrained, name, **kwargs)


def load_with_tokenizer(
    name: str, tokenizer: str | None = None, **kwargs
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked diffusion model and its tokenizer, which has a mask token; `tokenizer` where it is not beside it."""
    where = places(kwargs)
    load_config(name, **where)  # first: a tokenizer is found in spite of a damaged configuration
    encoder = add_mask_token(load_tokenizer(tokenizer or name, **where))
    return load_masked(name, encoder, **kwargs), encoder


def load_masked(
    name: str, tokenizer: PreTrainedTokenizerBase | None = None, trust_energy_code: bool = False, **kwargs
) -> PreTrainedModel:
    """A masked diffusion model, which has `generate()`: ours as it is, any other masked language model in a composite.

    Args:
        name: folder, repository of the Hub, or a checkpoint that ships.
        tokenizer: the one of its texts. It says which token is the mask where the model does not, and is then needed:
            that of `name` unless given.
        trust_energy_code: of `EDLMForMaskedDiffusion.from_pretrained`. kwargs: of any `from_pretrained`.

    Raises:
        ValueError: the model cannot be loaded or is causal, or its mask token is not that of the tokenizer.
    """
    where = places(kwargs)
    kind = load_config(name, **where).model_type
    if kind in OURS:
        trust = {"trust_energy_code": trust_energy_code} if kind == "edlm" else {}
        model = load(AutoModelForMaskedLM.from_pretrained, name, **kwargs, **trust)
    else:
        network = load(components.load_denoiser, name, **kwargs)
        tokenizer = tokenizer or add_mask_token(load_tokenizer(name, **where))
        model = as_masked_diffusion(network, tokenizer)
    if tokenizer is not None and tokenizer.mask_token_id is not None:
        fit_to_tokenizer(model, tokenizer)
    return model


def load_denoiser(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """The denoiser of a model by name, to be trained or to get an energy; arguments as in `load_masked`."""
    model = load_masked(name, tokenizer)
    if not isinstance(model, EDLMForMaskedDiffusion):
        return model
    if isinstance(model.denoiser, MDLMForMaskedLM):
        return model.denoiser
    config = model.config
    parts = {"mask_token_id": config.mask_token_id, "logits_shift": config.logits_shift}
    alone = EDLMForMaskedDiffusion.from_components(model.denoiser, **parts)
    alone.config.noise_schedule = config.noise_schedule
    alone.config.noise_schedule_params = config.noise_schedule_params
    return alone


def places(kwargs: dict) -> dict:
    """The arguments of `from_pretrained` that say where from, for the configuration and the tokenizer."""
    return {key: kwargs[key] for key in ARGUMENTS_OF_PLACES if key in kwargs}


def as_masked_diffusion(network: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> nn.Module:
    """A network that knows its noise schedule as it is; any other masked language model as the denoiser of a composite
    without energy, which can be trained, saved, loaded and asked to generate.

    Raises:
        ValueError: nothing says which token is the mask, the network is causal, or it could not be saved.
    """
    if getattr(network.config, "model_type", None) in OURS:
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


def load_causal(name: str, **kwargs) -> PreTrainedModel:
    """A causal language model by name.

    Raises:
        ValueError: it cannot be loaded, or sees the tokens that it is to predict.
    """
    model = load(AutoModelForCausalLM.from_pretrained, name, **kwargs)
    if model.config.model_type not in OURS:
        check_causal(model)
    return model


# ---------------------------------------------------------------------------------------------------- what can go wrong


def load(loader: Callable, name: str, **kwargs):
    """`loader(name)`; whatever libraries raise at files that they cannot read becomes a sentence that names the file.

    Args:
        loader: a `from_pretrained`, which reads what is the user's. name: as in `load_masked`.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    place = locate(name)
    check_folder(place)
    check_files(place, DESCRIPTIONS)
    try:
        with warnings_held_back():
            loaded = loader(place, **kwargs)
            check_loaded(loaded)
    except Exception as error:  # damaged files make the libraries raise every type there is
        if is_out_of_memory(error):
            raise
        check_files(place)
        if family := published_family(place, **kwargs):
            raise ValueError(
                f"{name} is a {family} with code for transformers 4. Load it in Python with "
                "edlm_hf.load_published_denoiser, and save the whole (docs/published_models.md)."
            ) from error
        if loader != AutoConfig.from_pretrained:
            check_configurations(place)
        raise ValueError(why_not_loaded(error, loader, place, kwargs)) from error
    return loaded


def check_loaded(loaded) -> None:
    """Raise ValueError for what the libraries take from a file as it is, and would fall over later."""
    if isinstance(loaded, PreTrainedModel) and loaded.can_generate():
        loaded.generation_config.validate()
    longest = getattr(loaded, "model_max_length", 0)
    if not isinstance(longest, (int, float)):
        raise ValueError(f"model_max_length is {longest!r} in tokenizer_config.json, but it must be a number.")


def check_folder(name: str) -> None:
    """Raise ValueError if `name` is here, but is not the folder of a model."""
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"{name} is a file, but a folder is needed as save_pretrained writes it.")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ValueError(
            f"{name} is an adapter, not a model. Load its base in Python with PeftModel.from_pretrained, merge it "
            "(edlm_hf.training.merge_lora), and save the whole."
        )


def check_files(folder: str | Path, patterns: tuple[str, ...] = FILES) -> None:
    """Raise ValueError if a file of a model in a local folder cannot be read."""
    for pattern in patterns:
        for file in sorted(Path(folder).glob(pattern)):
            check_file(file)


def check_file(file: Path) -> None:
    """Raise ValueError if a file of a model cannot be read."""
    if fault := fault_of(file):
        raise ValueError(f"{file} {fault}. Copy or download it again.")


def check_configurations(folder: str) -> None:
    """Raise ValueError if it is one of the configurations of a model in a local folder that cannot be used."""
    if Path(folder, "config.json").exists():
        load_config(folder)
    file = Path(folder, "generation_config.json")
    if file.exists():
        try:
            EDLMGenerationConfig(**json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} cannot be used: {one_line(error)}") from error


def why_not_loaded(error: Exception, loader: Callable, name: str, kwargs: dict) -> str:
    """A sentence with the name of the model and the reason in it."""
    text = one_line(error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error)
    if "ignore_mismatched_sizes" in text:
        text = different_sizes(loader, name, kwargs) or text
    elif not isinstance(error, (ValueError, OSError, ImportError, StrictDataclassError)):
        text = f"{type(error).__name__}: {text}"
    if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
        return text
    part = {AutoConfig: "The configuration of ", AutoTokenizer: "The tokenizer of "}
    return f"{part.get(getattr(loader, '__self__', None), '')}{name} cannot be loaded: {text}"


def different_sizes(loader: Callable, name: str, kwargs: dict) -> str | None:
    """Which weight has another shape than the configuration says; the error of transformers leaves that to its log."""
    with warnings_held_back(forget=True):
        _, info = loader(name, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    for weight, stored, expected in sorted(info["mismatched_keys"]):
        return (
            f"the weights do not fit config.json: {weight} has the shape {tuple(stored)}, where the configuration "
            f"says {tuple(expected)}."
        )
    return None


@contextmanager
def warnings_held_back(forget: bool = False) -> Iterator[None]:
    """What transformers logs appears when all has gone well; after an error, which is told by itself, it does not."""
    logger = logging.getLogger("transformers")
    handlers = logger.handlers
    held = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.handlers = [held]
    try:
        yield
    finally:
        logger.handlers = handlers
    if not forget:
        for record in held.buffer:
            logger.handle(record)


__all__ = [
    "FILES",
    "as_masked_diffusion",
    "check_file",
    "check_files",
    "load",
    "load_causal",
    "load_config",
    "load_denoiser",
    "load_masked",
    "load_tokenizer",
    "load_with_tokenizer",
]
