"""Checks of what users put together: parts that do not fit are refused before anything runs."""

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .causal_log_probs import accepts
from .configuration_edlm import EDLMConfig
from .modeling_mdlm import MDLMPreTrainedModel
from .network_probes import is_causal


def check_parts(denoiser: nn.Module, energy: nn.Module | None, energy_type: str) -> None:
    """Raise ValueError unless denoiser and energy are models that can play their parts."""
    starts_from_denoiser = energy is None and energy_type == "nce"
    if (energy is None) != (energy_type == "none") and not starts_from_denoiser:
        given = "no energy" if energy is None else f"an energy ({type(energy).__name__})"
        raise ValueError(
            f"energy_type is {energy_type!r} but {given} was given. Pass a causal language model for 'ar' or "
            "'coar', an EDLMEnergyModel (or nothing, to start one from the denoiser) for 'nce', nothing for 'none'."
        )
    check_module("denoiser", denoiser)
    if energy is not None:
        check_module("energy", energy)
    check_denoiser(denoiser)
    if starts_from_denoiser:
        check_loaded(denoiser)
    elif energy_type == "nce":
        check_network(energy)


def check_causal(energy: nn.Module) -> None:
    """Refuse a model that sees what it is to predict in the place of the AR energy."""
    if not is_causal(energy):
        raise ValueError(
            f"The {type(energy).__name__} is no causal language model: its prediction of a token depends on later "
            "ones. Pass a causal one (AutoModelForCausalLM), or energy_type='nce' for an energy network."
        )


def check_module(name: str, part) -> None:
    """Refuse what is no model, a callable among it."""
    if not isinstance(part, nn.Module):
        raise ValueError(
            f"The {name} is a {type(part).__name__}, but a model is needed (torch.nn.Module) or the name of one. A "
            "function that weighs proposals goes to generate(energy=...)."
        )


def check_loaded(denoiser: nn.Module) -> None:
    """Refuse weights that are offloaded as the start of an energy."""
    if any(parameter.device.type == "meta" for parameter in denoiser.parameters()):
        raise ValueError(
            "An energy cannot start from a denoiser whose weights are offloaded (on the device `meta`). Put the energy "
            "on it first, and offload the whole."
        )


def check_network(energy: nn.Module) -> None:
    """Refuse a model that does not read candidates in the place of the NCE energy; modules of others are believed."""
    if isinstance(energy, PreTrainedModel) and not accepts(energy, "candidate_ids"):
        raise ValueError(
            f"energy_type is 'nce', but the {type(energy).__name__} takes no candidate_ids. Pass an EDLMEnergyModel or "
            "a module that is called as one. A causal language model goes with energy_type='ar' or 'coar'."
        )


def check_denoiser(denoiser: nn.Module) -> None:
    """Refuse a causal language model in the place of the denoiser.

    Classes that transformers lists as causal are asked (a GPT-2 made bidirectional, as in DiffuGPT, passes).
    """
    config = getattr(denoiser, "config", None)
    causal = bool(getattr(config, "causal", False))
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if isinstance(denoiser, known) and not isinstance(denoiser, MDLMPreTrainedModel):
        causal = is_causal(denoiser)
    if causal:
        raise ValueError(
            f"The denoiser is a causal language model ({type(denoiser).__name__}), which cannot fill masks. Pass a "
            "masked language model (AutoModelForMaskedLM) as the denoiser and the causal one as `energy`."
        )


def check_vocabularies(config: EDLMConfig, tokenizer, energy_tokenizer, shown: int = 5) -> None:
    """Where both tokenizers are known, every id the denoiser can emit is the same token to the AR model."""
    if tokenizer is None or energy_tokenizer is None:
        return
    ours = {i: token for token, i in tokenizer.get_vocab().items() if i != config.mask_token_id}
    theirs = {i: token for token, i in energy_tokenizer.get_vocab().items()}
    different = sorted(
        i for i in ours if ours[i] != theirs.get(i) and (config.vocab_size is None or i < config.vocab_size)
    )
    if different:
        examples = ", ".join(f"{i} ({ours[i]!r} against {theirs.get(i)!r})" for i in different[:shown])
        raise ValueError(
            f"The vocabularies of denoiser and energy differ at {len(different)} ids: {examples}"
            f"{', ...' if len(different) > shown else ''}. An AR energy must use the denoiser's tokenizer."
        )


def check_candidates(candidate_ids, noisy_ids, attention_mask, mask_token_id: int, partial: bool) -> None:
    """Shapes fit, visible tokens are carried over, and unless `partial` no mask is left among the real positions."""
    shape = tuple(candidate_ids.shape)
    if len(shape) != 3 or 0 in shape or (shape[0], shape[2]) != tuple(noisy_ids.shape):
        raise ValueError(
            f"candidate_ids has shape {shape} and noisy_ids {tuple(noisy_ids.shape)}, but (B, k, L) and (B, L) are "
            "needed, none of them 0."
        )
    if attention_mask is not None and attention_mask.shape != noisy_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but (B, L) like noisy_ids is needed."
        )
    real = torch.ones_like(noisy_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    visible = noisy_ids != mask_token_id
    changed = (candidate_ids != noisy_ids.unsqueeze(1)) & (visible & real).unsqueeze(1)
    if changed.any():
        row, candidate, position = changed.nonzero()[0].tolist()
        raise ValueError(
            f"Candidate {candidate} of row {row} changes the visible token at position {position}. Candidates must "
            "agree with noisy_ids wherever that is not the mask token."
        )
    if not partial and ((candidate_ids == mask_token_id) & real.unsqueeze(1)).any():
        raise ValueError("candidate_ids still holds mask tokens. Energies are those of complete sequences.")
