"""LLaDA, Dream and their kin from their published files, without the code that is published with them.

    denoiser = load_published_denoiser("GSAI-ML/LLaDA-8B-Base", dtype="bfloat16")
    tokenizer = load_published_tokenizer("GSAI-ML/LLaDA-8B-Base")
    model = EDLMForMaskedDiffusion.from_components(denoiser, tokenizer=tokenizer)

Of a folder or a repository of the Hub, config.json, the weights (safetensors) and the files of the
tokenizer are read. The model becomes one of a class of transformers (see published_layouts.py), which
is saved and loaded like any other.
"""

import transformers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.modeling.components import location_of_files
from edlm_hf.published_files import find_file, read_config, rows_of, weight_files
from edlm_hf.published_layouts import FOLLOWS_FROM_CONFIGURATION, Layout, layout_of
from edlm_hf.terminal import list_names


def load_published_denoiser(name: str, *, mask_token_id: int | None = None, **kwargs) -> PreTrainedModel:
    """The denoiser of LLaDA, LLaDA-MoE, Dream, DiffuGPT, DiffuLLaMA, or of dLLM's A2D models.

    No code of the repository runs, and nothing but safetensors is read of the weights.

    Args:
        name: folder, or repository of the Hub.
        mask_token_id: taken from config.json, or else from the tokenizer, unless given.
        kwargs: of any `from_pretrained`: `dtype`, `device_map`, `revision`, `token`, ...

    Returns:
        A decoder of transformers without a causal mask, in eval mode. Its configuration says
        `mask_token_id` and `logits_shift`, which `from_components` and `custom_generate` read.

    Raises:
        ValueError: the model is none of these, its weights do not fit its config.json, or nothing says
            which token is the mask.
    """
    # Which family it is, by config.json and the names of the weights: no numbers are read yet
    where = location_of_files(kwargs)
    published = read_config(name, where)
    weights = weight_files(name, where)
    layout = layout_of(published, weights)

    # 1. The configuration of the class that computes the same
    if mask_token_id is None:
        mask_token_id = published.get("mask_token_id")
    if mask_token_id is None:
        mask_token_id = load_published_tokenizer(name, **where).mask_token_id
    rows = None
    if layout.embedding is not None:
        rows = rows_of(name, weights, layout.embedding, where)
    config = layout.configuration(published, mask_token_id, rows)

    # 2. The weights, under the names of that class
    special_tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {token: getattr(config, token) for token in special_tokens}
    options = {
        **kwargs,
        "config": config,
        "generation_config": GenerationConfig(**tokens),
        "key_mapping": dict(layout.renames),
        "use_safetensors": True,
        "trust_remote_code": False,
        "ignore_mismatched_sizes": True,  # they are refused below, by name
        "output_loading_info": True,
    }
    model, info = layout.network_class().from_pretrained(name, **options)
    check_complete(name, layout, info)

    # 3. From now on saved under these names. Otherwise save_pretrained would write the published ones.
    model._weight_conversions = None
    return model.eval()


def load_published_tokenizer(name: str, **kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that `load_published_denoiser` loads, with its mask token.

    Args:
        name: folder, or repository of the Hub.
        kwargs: of any `from_pretrained`: `revision`, `token`, `padding_side`, ...

    Raises:
        ValueError: there is no tokenizer, or nothing says which token is the mask.
    """
    where = location_of_files(kwargs)
    published = read_config(name, where)
    layout = layout_of(published, weight_files(name, where))

    # tokenizer.json has all of a tokenizer. Other files need the class that they were written for
    tokenizer_class = layout.tokenizer_class
    if find_file(name, "tokenizer.json", where) is not None:
        tokenizer_class = "PreTrainedTokenizerFast"
    if tokenizer_class is None:
        raise ValueError(f"{name} has no tokenizer.json. Load the tokenizer of the model it was made of.")
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(name, **kwargs)

    # No new token: the mask has a row in the embedding of the model already
    if tokenizer.mask_token is None:
        mask_token = mask_token_of(tokenizer, published, layout)
        if mask_token is None:
            raise ValueError(
                f"Neither config.json nor the tokenizer of {name} says which token is the mask. Pass "
                "mask_token_id=... to load_published_denoiser, and set tokenizer.mask_token."
            )
        tokenizer.add_special_tokens({"mask_token": mask_token})
    return tokenizer


def published_family(name: str, **kwargs) -> str | None:
    """The family of a folder or repository that `load_published_denoiser` knows, None for all others."""
    where = location_of_files(kwargs)
    try:
        return layout_of(read_config(name, where), weight_files(name, where)).name
    except (ValueError, OSError):
        return None


def mask_token_of(tokenizer: PreTrainedTokenizerBase, published: dict, layout: Layout) -> str | None:
    """The mask of a tokenizer that does not say which it is, None if that is not known."""
    index = published.get("mask_token_id")
    if index is not None:
        return tokenizer.convert_ids_to_tokens(index)
    if layout.mask_token in tokenizer.get_vocab():
        return layout.mask_token
    return None


def check_complete(name: str, layout: Layout, info: dict) -> None:
    """Raise ValueError unless the files had every weight of the class in its shape, and no other."""
    # transformers would fill what is missing with random numbers, and only warn
    extra = [key for key in info["unexpected_keys"] if not FOLLOWS_FROM_CONFIGURATION.search(key)]
    sizes = []
    for key, stored, needed in info["mismatched_keys"]:
        sizes.append(f"{key} {tuple(stored)}, not {tuple(needed)}")
    faults = {
        "Missing": info["missing_keys"],
        "Left over": extra,
        "Of another shape": sizes,
    }

    found = [list_names(title, sorted(names)) for title, names in faults.items() if names]
    if found:
        raise ValueError(
            f"The weights of {name} are not those of the {layout.name} in its config.json, under the "
            f"names of {layout.model_class}. {' '.join(found)}"
        )


__all__ = ["load_published_denoiser", "load_published_tokenizer", "published_family"]
