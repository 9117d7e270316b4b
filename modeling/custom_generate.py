"""`generate()` of this repository for masked diffusion language models of others (LLaDA, Dream and their kin).

On the Hub this file is custom_generate/generate.py, whose `generate` is what
`model.generate(..., custom_generate="...", trust_remote_code=True)` calls.
"""

import torch
from torch import nn

from .evaluation_mode import evaluating
from .generation_config_edlm import token_ids_from
from .modeling_edlm import EDLMForMaskedDiffusion

# What the `generate` of transformers hands over besides the user's arguments, and what only said where this code is.
FOREIGN = {"prefix_allowed_tokens_fn", "synced_gpus", "assistant_model"}
FOREIGN |= {"negative_prompt_ids", "negative_prompt_attention_mask"}
CODE_LOCATION = {"cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "repo_type"}
SPECIAL_TOKENS = ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def generate(
    model: nn.Module,
    input_ids: torch.LongTensor | None = None,
    logits_shift: int | None = None,
    mask_token_id: int | None = None,
    energy_model: nn.Module | str | None = None,
    energy_type: str | None = None,
    **kwargs,
):
    """Fill masks with any masked diffusion model, as `EDLMForMaskedDiffusion.generate` does. The model stays as it is.

    Args:
        model: bidirectional, called as `model(input_ids=..., attention_mask=...)`, returning `.logits` (B, L, V).
        input_ids: (B, P). Mask tokens in it are filled, everything else is kept. `max_new_tokens` appends masks.
        logits_shift: 1 if the logits at position i - 1 predict token i, 0 if those at i do. Unless given:
            `model.config.logits_shift`, else 1 for models of type "Dream" and 0 for all others.
        mask_token_id: taken from the model's configuration or generation configuration unless given.
        energy_model: a causal language model of the same vocabulary, or an EDLM energy network, to weigh proposals by.
        energy_type: `ar` (the default), `coar` or `nce`: what `energy_model` is.
        kwargs: everything else `EDLMForMaskedDiffusion.generate` takes: `attention_mask`, `max_new_tokens`,
            `max_denoising_steps`, `sampler`, `block_length`, `energy`, `num_candidates`, `generator`, `streamer`, ...
            Of the model's own generation configuration only the special tokens count.

    Returns:
        Token ids (B, P + new), or an `EDLMGenerationOutput` with `return_dict_in_generate=True`.

    Raises:
        ValueError: the mask token is not known, an argument is unknown or not supported, or as there.
    """
    inputs = kwargs.pop("inputs", None)
    if inputs is not None and input_ids is not None:
        raise ValueError("Both inputs and input_ids were given. Pass one of them.")
    kwargs = {name: value for name, value in kwargs.items() if name not in CODE_LOCATION}
    foreign = {name: kwargs.pop(name) for name in FOREIGN if name in kwargs}
    if refused := sorted(name for name, value in foreign.items() if value is not None and value is not False):
        raise ValueError(f"Masked diffusion has no use for {', '.join(refused)}. Leave that out.")
    if energy_type == "nce" and energy_model is None:
        raise ValueError("energy_type is 'nce' but there is no energy_model. Pass the trained energy network.")

    tokens = special_tokens(model)
    if mask_token_id is None:
        mask_token_id = tokens.get("mask_token_id")
    mask_token_id = token_ids_from("mask_token_id", mask_token_id, several=False)
    if mask_token_id is None:
        raise ValueError(
            f"The mask token of {type(model).__name__} is not known: neither its config nor its generation_config has "
            "a mask_token_id. Pass mask_token_id=..., for example tokenizer.mask_token_id."
        )
    parts = [part for part in (model, energy_model) if isinstance(part, nn.Module)]
    with evaluating(*parts):
        whole = EDLMForMaskedDiffusion.from_components(
            model,
            energy_model,
            energy_type=energy_type,
            energy_scope=kwargs.get("energy_scope") or "sequence",
            mask_token_id=mask_token_id,
            logits_shift=logits_shift,
        )
        whole.generation_config = whole.generation_config_class.from_model_config(tokens)
        return whole.generate(input_ids if inputs is None else inputs, **kwargs)


def special_tokens(model: nn.Module) -> dict[str, int | list[int]]:
    """Ids of the special tokens: those of the model's generation configuration, else of its configuration."""
    sources = (getattr(model, "config", None), getattr(model, "generation_config", None))
    found = [(name, getattr(source, name, None)) for source in sources for name in SPECIAL_TOKENS]
    return {name: value for name, value in found if value is not None}


__all__ = ["generate"]
