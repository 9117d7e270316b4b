"""The models that training starts from: random weights, new energies, new draft heads."""

import copy

from transformers import AutoModelForMaskedLM, PreTrainedModel

import edlm_hf
from edlm_hf.commands.training_flags import DataArguments, DraftModelArguments, EnergyModelArguments, ModelArguments
from edlm_hf.loading import load, load_denoiser
from edlm_hf.modeling.network_facts import longest_text, num_ids
from edlm_hf.modeling.vocabulary import absent_ids
from edlm_hf.tokenization import vocabulary_rows
from edlm_hf.training.adapters import energy_lora


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


def new_energy(parts: EnergyModelArguments) -> edlm_hf.EDLMForMaskedDiffusion:
    """The frozen denoiser with a new energy, held in one of three ways.

    Raises:
        ValueError: more `energy_blocks` than the denoiser has, or where nothing is copied; both a denoiser and a model
            to go on with, or neither.
    """
    if (parts.denoiser is None) == (parts.model is None):
        raise ValueError("Give either denoiser, which gets a new energy, or model, whose energy is trained further.")
    scope = {} if parts.energy_scope is None else {"energy_scope": parts.energy_scope}
    if parts.model is not None:
        return load(AutoModelForMaskedLM.from_pretrained, parts.model, **scope)
    if parts.adapter:
        raise ValueError("adapter is for the energy that a model has: give model in place of denoiser.")
    denoiser = load_denoiser(parts.denoiser)
    options = {"energy_type": "nce"} | scope
    if isinstance(denoiser, edlm_hf.EDLMForMaskedDiffusion):
        return energy_of_another_denoiser(denoiser, parts, options)
    if parts.energy != "full":
        rank = parts.adapter_rank if parts.energy == "lora" else 0
        options |= {"energy_weights": "shared", "energy_adapter_rank": rank}
    energy = None
    if parts.energy_blocks is not None:
        if parts.energy != "full" or not 1 <= parts.energy_blocks <= denoiser.config.n_blocks:
            raise ValueError(
                f"energy_blocks is {parts.energy_blocks} with energy={parts.energy!r}: it goes with 'full', from 1 to "
                f"the denoiser's {denoiser.config.n_blocks}."
            )
        first = copy.deepcopy(denoiser)
        first.config.n_blocks = parts.energy_blocks
        first.backbone.blocks = first.backbone.blocks[: parts.energy_blocks]
        energy = edlm_hf.EDLMEnergyModel.from_denoiser(first)
    return edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, energy, **options)


def with_new_adapter(model: edlm_hf.EDLMForMaskedDiffusion, rank: int):
    """A `PeftModel`: the energy of a model with a new adapter."""
    from peft import get_peft_model

    return get_peft_model(model, energy_lora(r=rank, alpha=2 * rank))


def energy_of_another_denoiser(
    whole: edlm_hf.EDLMForMaskedDiffusion, parts: EnergyModelArguments, options: dict
) -> edlm_hf.EDLMForMaskedDiffusion:
    """A denoiser that is not an MDLM (`whole` holds it) with a new energy network of its sizes and random weights."""
    if parts.energy != "full":
        raise ValueError(
            f"energy is {parts.energy!r} with a {type(whole.denoiser).__name__}, but only an MDLM can share its "
            "weights with the energy. Give energy='full': a network of the same sizes, with weights of its own."
        )
    config = whole.config
    of_energy = edlm_hf.MDLMConfig(
        vocab_size=num_ids(whole.denoiser),
        mask_token_id=config.mask_token_id,
        hidden_dim=config.hidden_size,
        n_blocks=parts.energy_blocks or config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        model_length=longest_text(whole.denoiser) or 1024,
        noise_schedule=config.noise_schedule,
        noise_schedule_params=config.noise_schedule_params,
    )
    energy = edlm_hf.EDLMEnergyModel(of_energy).to(whole.dtype)
    options |= {"mask_token_id": config.mask_token_id, "logits_shift": config.logits_shift}
    model = edlm_hf.EDLMForMaskedDiffusion.from_components(whole.denoiser, energy, **options)
    model.config.noise_schedule = config.noise_schedule
    model.config.noise_schedule_params = config.noise_schedule_params
    return model


def new_drafter(parts: DraftModelArguments) -> edlm_hf.MDLMForMaskedLM:
    """The denoiser with a new draft head.

    Raises:
        ValueError: no denoiser is given, it is not an MDLM, or the width is not positive.
    """
    if parts.denoiser is None:
        raise ValueError("Give denoiser, the trained denoiser that gets a draft head.")
    denoiser = load_denoiser(parts.denoiser)
    if not isinstance(denoiser, edlm_hf.MDLMForMaskedLM):
        raise ValueError(f"{parts.denoiser} is not an MDLM denoiser, and only an MDLM can have a draft head.")
    denoiser.add_draft_head(parts.draft_width)
    return denoiser
