"""`generate()` of this repository for masked diffusion models of others, such as LLaDA and Dream.

On the Hub this file is custom_generate/generate.py, whose `generate` is called by
`model.generate(..., custom_generate="...", trust_remote_code=True)`.
"""

import torch
from torch import nn

from .evaluation_mode import evaluating
from .generation_config_edlm import token_ids_from
from .modeling_edlm import EDLMForMaskedDiffusion

# Arguments that the `generate` of transformers adds. Here they must be None or False.
FOREIGN = {
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
}
# Arguments that said where this code is
CODE_LOCATION = {
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "local_files_only",
    "repo_type",
}
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
    """Fill masks with any masked diffusion model, as `EDLMForMaskedDiffusion.generate` does.

    The model stays as it is.

    Args:
        model: bidirectional, called as `model(input_ids=..., attention_mask=...)`, returning
            `.logits` (B, L, V).
        input_ids: (B, P). Mask tokens in it are filled, everything else is kept. `max_new_tokens`
            appends masks.
        logits_shift: 1 if the logits at position i - 1 predict token i, 0 if those at i do. Unless
            given: `model.config.logits_shift`, else 1 for models of type "Dream" and 0 for others.
        mask_token_id: taken from the model's configuration or generation configuration unless
            given.
        energy_model: a causal language model of the same vocabulary, or an EDLM energy network. It
            picks one of the proposals.
        energy_type: the kind of `energy_model`: `ar` (the default), `coar` or `nce`.
        kwargs: all other arguments of `EDLMForMaskedDiffusion.generate`: `attention_mask`,
            `max_new_tokens`, `max_denoising_steps`, `sampler`, `block_length`, `energy`,
            `num_candidates`, `generator`, `streamer`, ... Of the model's own generation
            configuration only the special tokens count.

    Returns:
        Token ids (B, P + new), or an `EDLMGenerationOutput` with `return_dict_in_generate=True`.

    Raises:
        ValueError: the mask token is not known, an argument is unknown or not supported, or as
            `EDLMForMaskedDiffusion.generate`.
    """
    # 1. The user's arguments
    inputs = kwargs.pop("inputs", None)
    if inputs is not None:
        if input_ids is not None:
            raise ValueError("Both inputs and input_ids were given. Pass one of them.")
        input_ids = inputs
    options = options_of_user(kwargs)
    if energy_type == "nce" and energy_model is None:
        raise ValueError("energy_type is 'nce' but there is no energy_model. Pass the trained energy network.")

    # 2. The mask token
    tokens = special_tokens(model)
    if mask_token_id is None:
        mask_token_id = tokens.get("mask_token_id")
    mask_token_id = token_ids_from("mask_token_id", mask_token_id, several=False)
    if mask_token_id is None:
        raise ValueError(
            f"The mask token of {type(model).__name__} is not known: neither its config nor its "
            "generation_config has a mask_token_id. Pass mask_token_id=..., for example "
            "tokenizer.mask_token_id."
        )

    # 3. The model as the denoiser of one of ours. Making it calls the networks, in eval mode.
    networks = [network for network in (model, energy_model) if isinstance(network, nn.Module)]
    with evaluating(*networks):
        composite = EDLMForMaskedDiffusion.from_components(
            model,
            energy_model,
            energy_type=energy_type,
            energy_scope=options.get("energy_scope") or "sequence",
            mask_token_id=mask_token_id,
            logits_shift=logits_shift,
        )

        # Of the model's own options only the special tokens mean the same here
        config_class = composite.generation_config_class
        composite.generation_config = config_class.from_model_config(tokens)
        return composite.generate(input_ids, **options)


def options_of_user(kwargs: dict) -> dict:
    """The keyword arguments of the user among those that transformers hands over.

    Raises:
        ValueError: an argument is given that masked diffusion does not support.
    """
    refused = []
    for name in FOREIGN:
        value = kwargs.get(name)
        if value is not None and value is not False:
            refused.append(name)
    if refused:
        raise ValueError(f"Masked diffusion has no use for {', '.join(sorted(refused))}. Leave that out.")

    not_of_user = FOREIGN | CODE_LOCATION
    return {name: value for name, value in kwargs.items() if name not in not_of_user}


def special_tokens(model: nn.Module) -> dict[str, int | list[int]]:
    """Ids of the special tokens by the model's generation configuration, else its configuration."""
    # The later source overrides the earlier one
    tokens = {}
    for source in ("config", "generation_config"):
        config = getattr(model, source, None)
        for name in SPECIAL_TOKENS:
            value = getattr(config, name, None)
            if value is not None:
                tokens[name] = value
    return tokens


__all__ = ["generate"]
