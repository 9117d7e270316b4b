"""Checks of models that users combine: parts that do not fit are refused before anything runs."""

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .configuration_edlm import EDLMConfig
from .mdlm_pretrained import MDLMPreTrainedModel
from .network_facts import accepts, without_adapters
from .network_probes import is_causal, sees_later_tokens

# Ids that a message names where vocabularies differ
NUM_EXAMPLES = 5


def check_parts(denoiser: nn.Module, energy: nn.Module | None, energy_type: str) -> None:
    """Refuse models that cannot play the parts of denoiser and energy.

    Raises:
        ValueError: energy and `energy_type` contradict each other, or a part is of another kind.
    """
    # An NCE energy may be left out: a new one starts from the denoiser.
    starts_from_denoiser = energy is None and energy_type == "nce"
    contradicts = (energy is None) != (energy_type == "none")
    if contradicts and not starts_from_denoiser:
        given = "no energy" if energy is None else f"an energy ({type(energy).__name__})"
        raise ValueError(
            f"energy_type is {energy_type!r} but {given} was given. Pass a causal language model "
            "for 'ar' or 'coar', an EDLMEnergyModel (or nothing, to start one from the denoiser) "
            "for 'nce', nothing for 'none'."
        )

    check_module("denoiser", denoiser)
    if energy is not None:
        check_module("energy", energy)
    check_denoiser(denoiser)

    if starts_from_denoiser:
        check_start(denoiser)
    elif energy_type == "nce":
        check_network(energy)


def check_causal(energy: nn.Module) -> None:
    """Refuse an AR energy that sees the tokens it predicts."""
    if not is_causal(energy):
        raise ValueError(
            f"The {type(energy).__name__} is no causal language model: its prediction of a token "
            "depends on later ones. Pass a causal one (AutoModelForCausalLM), or energy_type='nce' "
            "for an energy network."
        )


def check_module(name: str, part) -> None:
    """Refuse a part that is not a model, such as a function."""
    if not isinstance(part, nn.Module):
        raise ValueError(
            f"The {name} is a {type(part).__name__}, but a model is needed (torch.nn.Module) or "
            "the name of one. A function that weighs proposals goes to generate(energy=...)."
        )


def check_start(denoiser: nn.Module) -> None:
    """Refuse a denoiser of another kind, or with offloaded weights, as the start of an energy."""
    if not isinstance(without_adapters(denoiser), MDLMPreTrainedModel):
        raise ValueError(
            f"A new NCE energy starts from the weights of an MDLM, but the denoiser is a {type(denoiser).__name__}. "
            "Give the energy: energy=EDLMEnergyModel(MDLMConfig(...)) with the denoiser's vocab_size and "
            "mask_token_id, which is then trained from scratch."
        )
    if any(parameter.device.type == "meta" for parameter in denoiser.parameters()):
        raise ValueError(
            "An energy cannot start from a denoiser whose weights are offloaded (on the device "
            "`meta`). Put the energy on it first, and offload the whole."
        )


def check_network(energy: nn.Module) -> None:
    """Refuse an NCE energy that does not read candidates. Modules of others are believed."""
    if isinstance(energy, PreTrainedModel) and not accepts(energy, "candidate_ids"):
        raise ValueError(
            f"energy_type is 'nce', but the {type(energy).__name__} takes no candidate_ids. Pass "
            "an EDLMEnergyModel or a module that is called as one. A causal language model goes "
            "with energy_type='ar' or 'coar'."
        )


def check_denoiser(denoiser: nn.Module) -> None:
    """Refuse a causal language model as the denoiser. Of a composite its denoiser is asked."""
    config = getattr(denoiser, "config", None)
    if isinstance(config, EDLMConfig) and hasattr(denoiser, "denoiser"):
        check_denoiser(denoiser.denoiser)
        return
    causal = bool(getattr(config, "causal", False))

    # Classes that transformers lists as causal are tried: a GPT-2 that was made bidirectional, as
    # in DiffuGPT, passes. Where a trial cannot tell, the configuration is believed.
    network = without_adapters(denoiser)
    listed_classes = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if isinstance(network, listed_classes) and not isinstance(network, MDLMPreTrainedModel):
        sees_later = sees_later_tokens(network)
        if sees_later is None:
            sees_later = not getattr(config, "is_causal", True)
        causal = not sees_later

    if causal:
        raise ValueError(
            f"The denoiser is a causal language model ({type(denoiser).__name__}), which cannot "
            "fill masks. Pass a masked language model (AutoModelForMaskedLM) as the denoiser and "
            "the causal one as `energy`."
        )


def check_vocabularies(config: EDLMConfig, tokenizer, energy_tokenizer) -> None:
    """Refuse an AR model for which an id that the denoiser can emit is another token.

    Nothing is checked unless both tokenizers are known.
    """
    if tokenizer is None or energy_tokenizer is None:
        return

    # Id -> token
    ours = {i: token for token, i in tokenizer.get_vocab().items()}
    theirs = {i: token for token, i in energy_tokenizer.get_vocab().items()}

    # Only ids that the denoiser can emit have to be the same token.
    ours.pop(config.mask_token_id, None)
    different = []
    for i in sorted(ours):
        in_model = config.vocab_size is None or i < config.vocab_size
        if in_model and ours[i] != theirs.get(i):
            different.append(i)

    if different:
        shown = different[:NUM_EXAMPLES]
        examples = [f"{i} ({ours[i]!r} against {theirs.get(i)!r})" for i in shown]
        more = ", ..." if len(different) > len(shown) else ""
        raise ValueError(
            f"The vocabularies of denoiser and energy differ at {len(different)} ids: "
            f"{', '.join(examples)}{more}. An AR energy must use the denoiser's tokenizer."
        )


def check_candidates(
    candidate_ids: torch.LongTensor,
    noisy_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
    mask_token_id: int,
    may_hold_masks: bool,
) -> None:
    """Refuse candidates (B, k, L) that do not complete the noisy texts (B, L).

    Args:
        attention_mask: (B, L), 0 at padding, where anything may stand.
        may_hold_masks: whether masks may be left, as in energies over the reveal set.

    Raises:
        ValueError: shapes do not fit, a visible token is changed, or a mask is left.
    """
    # 1. Shapes
    shape = tuple(candidate_ids.shape)
    if len(shape) != 3 or 0 in shape or (shape[0], shape[2]) != tuple(noisy_ids.shape):
        raise ValueError(
            f"candidate_ids has shape {shape} and noisy_ids {tuple(noisy_ids.shape)}, but "
            "(B, k, L) and (B, L) are needed, none of them 0."
        )
    if attention_mask is not None and attention_mask.shape != noisy_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but (B, L) like noisy_ids is needed."
        )

    # 2. Visible tokens are carried over, (B, k, L).
    real = torch.ones_like(noisy_ids, dtype=torch.bool)
    if attention_mask is not None:
        real = attention_mask.bool()
    visible = (noisy_ids != mask_token_id) & real
    differs = candidate_ids != noisy_ids.unsqueeze(1)
    changed = differs & visible.unsqueeze(1)
    if changed.any():
        row, candidate, position = changed.nonzero()[0].tolist()
        raise ValueError(
            f"Candidate {candidate} of row {row} changes the visible token at position {position}. "
            "Candidates must agree with noisy_ids wherever that is not the mask token."
        )

    # 3. No mask is left.
    if may_hold_masks:
        return
    left = (candidate_ids == mask_token_id) & real.unsqueeze(1)
    if left.any():
        raise ValueError("candidate_ids still holds mask tokens. Energies are those of complete sequences.")
