"""The models that training starts from: random weights, new energies, new draft heads."""

import copy

from torch import nn
from transformers import PreTrainedModel

import edlm_hf
from edlm_hf.commands.training_flags import DataArguments, DraftModelArguments, EnergyModelArguments, ModelArguments
from edlm_hf.energy_adapters import energy_lora
from edlm_hf.loading import load_denoiser, load_energy
from edlm_hf.modeling.causal_log_probs import hidden_size_of
from edlm_hf.modeling.network_facts import longest_text, num_ids
from edlm_hf.modeling.vocabulary import absent_ids
from edlm_hf.tokenization import vocabulary_rows


def new_model(sizes: ModelArguments, data: DataArguments, tokenizer, causal: bool = False) -> PreTrainedModel:
    """Random weights. The start token of cropped blocks is context; wrapped blocks are modelled whole, as published."""
    chosen = {name: value for name, value in vars(sizes).items() if name not in ("model", "from_causal")}
    if causal:
        chosen = {name: chosen[name] for name in ("hidden_dim", "n_blocks", "n_heads", "dropout")} | {"causal": True}
    if data.style == "crop" and data.start_token:
        chosen |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rows = vocabulary_rows(tokenizer)
    config = edlm_hf.MDLMConfig(
        vocab_size=rows,
        mask_token_id=tokenizer.mask_token_id,
        absent_token_ids=absent_ids(tokenizer, rows),
        model_length=data.length,
        **chosen,
    )
    return edlm_hf.MDLMForCausalLM(config) if causal else edlm_hf.MDLMForMaskedLM(config)


def energy_to_train(parts: EnergyModelArguments) -> PreTrainedModel:
    """The energy of a model, trained further or by a new adapter, or a new one on a denoiser.

    Returns:
        a composite, or a `PeftModel` of one.

    Raises:
        ValueError: both a denoiser and a model to go on with, or neither; an adapter of no energy; what `new_energy`
            refuses.
    """
    if (parts.denoiser is None) == (parts.model is None):
        raise ValueError("Give either denoiser, which gets a new energy, or model, whose energy is trained further.")
    if parts.denoiser is not None:
        if parts.adapter:
            raise ValueError("adapter is for the energy that a model has: give model in place of denoiser.")
        return new_energy(parts)

    scope = {} if parts.energy_scope is None else {"energy_scope": parts.energy_scope}
    model = load_energy(parts.model, **scope)
    if not parts.adapter:
        return model

    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ValueError(f"{parts.model} is an adapter, which is trained further without adapter.")
    return get_peft_model(model, energy_lora(r=parts.adapter_rank, alpha=2 * parts.adapter_rank))


def new_energy(parts: EnergyModelArguments) -> edlm_hf.EDLMForMaskedDiffusion:
    """The frozen denoiser with a new energy, held in one of three ways.

    Raises:
        ValueError: more `energy_blocks` than the denoiser has, or where nothing is copied; weights that a denoiser of
            another package cannot share.
    """
    denoiser = load_denoiser(parts.denoiser)
    options = {"energy_type": "nce"}
    if parts.energy_scope is not None:
        options["energy_scope"] = parts.energy_scope
    if isinstance(denoiser, edlm_hf.EDLMForMaskedDiffusion):
        return energy_of_another_denoiser(denoiser, parts, options)

    # The denoiser's weights, alone or with low-rank updates
    if parts.energy != "full":
        options["energy_weights"] = "shared"
        options["energy_adapter_rank"] = parts.adapter_rank if parts.energy == "lora" else 0

    # Or a copy, of all its blocks or of the first ones
    energy = None
    if parts.energy_blocks is not None:
        energy = energy_of_first_blocks(denoiser, parts)
    return edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy, **options)


def energy_of_first_blocks(denoiser: edlm_hf.MDLMForMaskedLM, parts: EnergyModelArguments) -> edlm_hf.EDLMEnergyModel:
    """An energy network that begins as the first `energy_blocks` blocks of a denoiser."""
    if parts.energy != "full" or not 1 <= parts.energy_blocks <= denoiser.config.n_blocks:
        raise ValueError(
            f"energy_blocks is {parts.energy_blocks} with energy={parts.energy!r}: it goes with 'full', from 1 to "
            f"the denoiser's {denoiser.config.n_blocks}."
        )
    first = copy.deepcopy(denoiser)
    first.config.n_blocks = parts.energy_blocks
    first.backbone.blocks = first.backbone.blocks[: parts.energy_blocks]
    return edlm_hf.EDLMEnergyModel.from_denoiser(first)


def energy_of_another_denoiser(
    whole: edlm_hf.EDLMForMaskedDiffusion, parts: EnergyModelArguments, options: dict
) -> edlm_hf.EDLMForMaskedDiffusion:
    """A denoiser that is not an MDLM (`whole` holds it) with a new energy network of its sizes and random weights."""
    if parts.energy != "full":
        raise ValueError(
            f"energy is {parts.energy!r} with a {type(whole.denoiser).__name__}, but only an MDLM can share its "
            "weights with the energy. Give energy='full': a network of the same sizes, with weights of its own."
        )

    # 1. A network of its sizes, and the schedule under which it is trained
    config = whole.config
    schedule = {"noise_schedule": config.noise_schedule, "noise_schedule_params": config.noise_schedule_params}
    of_energy = edlm_hf.MDLMConfig(
        vocab_size=num_ids(whole.denoiser),
        mask_token_id=config.mask_token_id,
        hidden_dim=config.hidden_size,
        n_blocks=parts.energy_blocks or config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        model_length=longest_text(whole.denoiser) or 1024,
        **schedule,
    )
    energy = edlm_hf.EDLMEnergyModel(of_energy).to(whole.dtype)

    # 2. The composite knows what the denoiser does not say
    options |= {"mask_token_id": config.mask_token_id, "logits_shift": config.logits_shift}
    model = edlm_hf.EDLMForMaskedDiffusion.from_components(whole.denoiser, energy, **options)
    for name, value in schedule.items():
        setattr(model.config, name, value)
    return model


def new_drafter(parts: DraftModelArguments, target: nn.Module | None) -> edlm_hf.MDLMForMaskedLM:
    """The denoiser with a draft head for a target: its own where it has one of these sizes, else a new one.

    Raises:
        ValueError: no denoiser is given, it is not an MDLM, or the width is not positive.
    """
    if parts.denoiser is None:
        raise ValueError("Give denoiser, the trained denoiser that gets a draft head.")
    denoiser = load_denoiser(parts.denoiser)
    if not isinstance(denoiser, edlm_hf.MDLMForMaskedLM):
        raise ValueError(f"{parts.denoiser} is not an MDLM denoiser, and only an MDLM can have a draft head.")

    # A head that is there goes on learning
    if denoiser.draft_head is None or denoiser.config.draft_width != parts.draft_width:
        denoiser.add_draft_head(parts.draft_width)

    # The first draft reads the states of a target that has some
    target_dim = hidden_size_of(target)
    if target_dim and denoiser.config.draft_target_dim != target_dim:
        denoiser.add_first_draft(target_dim)
    return denoiser
