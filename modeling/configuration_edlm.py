"""Configuration of an EDLM: a denoiser, an energy, and how they belong together."""

import copy

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_mdlm import MDLMConfig, checked
from .masked_diffusion import canonical_schedule_name, make_schedule
from .network_facts import longest_text, start_token, token_ids, vocabulary_size
from .vocabulary import check_absent_ids, highest_emitted

ENERGY_TYPES = ("none", "ar", "coar", "nce")
ENERGY_SCOPES = ("sequence", "revealed")
ENERGY_WEIGHTS = ("own", "shared")

# A process without the package must know the sub-configuration of a checkpoint that travels with its code. A copy of
# this file that came with a checkpoint leaves the class of an installed package where it is.
known = CONFIG_MAPPING[MDLMConfig.model_type] if MDLMConfig.model_type in CONFIG_MAPPING else None
if known is None or known.__module__.startswith("transformers_modules."):
    AutoConfig.register(MDLMConfig.model_type, MDLMConfig, exist_ok=True)


@checked
class PlainModuleConfig(PreTrainedConfig):
    """What is known of a part that has no transformers configuration; such a part cannot be saved."""

    vocab_size: int | None = None
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    max_position_embeddings: int | None = None


@checked
class EDLMConfig(PreTrainedConfig):
    r"""Composite configuration of `EDLMForMaskedDiffusion` (arXiv 2410.21357).

    Args:
        denoiser_config: configuration (or its dictionary with a `model_type`) of the masked language model that
            proposes tokens; an `MDLMConfig` unless given.
        energy_config: configuration of the energy network: a causal language model for `ar` and `coar`, an `MDLMConfig`
            for `nce`, None for `none`.
        energy_type: `none` (plain MDLM), `ar` (-log p_AR(x_0) + log p_theta(x_0|x_t)), `coar` (the same with the
            AR sum over masked positions only) or `nce` (scalar network).
        energy_scope: `sequence` weights whole sequences, as in the paper; `revealed` weights what a step reveals.
        energy_weights: `own` parameters of the energy network, or `shared`: the denoiser's trunk and a head of its own.
        energy_adapter_rank: rank of the low-rank updates with which a shared energy runs the trunk; 0 for none.
        energy_name_or_path: repository or folder of an AR energy that is kept by reference instead of inside the
            checkpoint; `energy_revision` pins it.
        mask_token_id: the mask token of the denoiser; taken from its configuration unless given.
        absent_token_ids: ranges [first, last] of ids that the tokenizer lacks, which are never drawn; taken from the
            denoiser unless given.
        logits_shift: 1 if the logits at position i - 1 predict token i (Dream, DiffuGPT), else 0.
        noise_schedule, noise_schedule_params: as in `MDLMConfig`; taken from the denoiser unless given.

    Raises:
        ValueError: a value is not allowed, or the parts contradict each other.
    """

    model_type = "edlm"
    sub_configs = {"denoiser_config": AutoConfig, "energy_config": AutoConfig}

    denoiser_config: PreTrainedConfig | dict | None = None
    energy_config: PreTrainedConfig | dict | None = None
    energy_type: str = "none"
    energy_scope: str = "sequence"
    energy_weights: str = "own"
    energy_adapter_rank: int = 0
    energy_name_or_path: str | None = None
    energy_revision: str | None = None
    vocab_size: int | None = None
    mask_token_id: int | None = None
    absent_token_ids: list[list[int]] | None = None
    logits_shift: int = 0
    noise_schedule: str | None = None
    noise_schedule_params: dict[str, float | int] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.denoiser_config = as_config(self.denoiser_config, "denoiser_config") or MDLMConfig()
        self.energy_config = as_config(self.energy_config, "energy_config")
        denoiser = self.denoiser_config
        self._take_tokens_of(denoiser)
        of_denoiser = getattr(denoiser, "noise_schedule", "loglinear")
        self.noise_schedule = canonical_schedule_name(self.noise_schedule or of_denoiser)
        if self.noise_schedule_params is None and self.noise_schedule == of_denoiser:
            self.noise_schedule_params = getattr(denoiser, "noise_schedule_params", None)
        if self.energy_type == "nce" and self.energy_config is None and denoiser.model_type == MDLMConfig.model_type:
            self.energy_config = None if self.energy_weights == "shared" else copy.deepcopy(denoiser)
        super().__post_init__(**kwargs)
        self.return_dict = True
        self.validate_architecture()
        self.validate_token_ids()

    def _take_tokens_of(self, denoiser: PreTrainedConfig) -> None:
        """The vocabulary and the special tokens that were not given are the denoiser's."""
        if self.vocab_size is None:
            self.vocab_size = vocabulary_size(denoiser)
        if self.absent_token_ids is None:
            self.absent_token_ids = getattr(denoiser, "absent_token_ids", None)
        for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            ids = token_ids(denoiser, name)
            if getattr(self, name) is None and ids:
                setattr(self, name, ids if name == "eos_token_id" and len(ids) > 1 else ids[0])

    def to_dict(self) -> dict:
        """As usual, without the places the two parts once came from."""
        output = super().to_dict()
        for name in self.sub_configs:
            if output.get(name) is not None:
                output[name].pop("_name_or_path", None)
        return output

    @property
    def hidden_size(self) -> int | None:
        return getattr(self.denoiser_config, "hidden_size", None)

    @property
    def num_hidden_layers(self) -> int | None:
        return getattr(self.denoiser_config, "num_hidden_layers", None)

    @property
    def num_attention_heads(self) -> int | None:
        return getattr(self.denoiser_config, "num_attention_heads", None)

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest sequence of the denoiser."""
        return longest_text(self.denoiser_config)

    @property
    def time_conditioning(self) -> bool:
        return getattr(self.denoiser_config, "time_conditioning", False)

    def validate_architecture(self):
        """The choices exist and fit together (called at construction and before saving)."""
        check_choice("energy_type", self.energy_type, ENERGY_TYPES)
        check_choice("energy_scope", self.energy_scope, ENERGY_SCOPES)
        check_choice("energy_weights", self.energy_weights, ENERGY_WEIGHTS)
        check_choice("logits_shift", self.logits_shift, (0, 1))
        make_schedule(self.noise_schedule, **(self.noise_schedule_params or {}))
        if getattr(self.denoiser_config, "causal", False):
            raise ValueError(
                "denoiser_config describes a causal model (causal=True), which cannot denoise. Give a masked language "
                "model; the causal one can be the energy (energy_type='ar')."
            )
        if self.energy_type == "nce" and self.energy_weights == "own":
            self._validate_network_energy()
        if self.energy_type in ("ar", "coar"):
            if self.energy_config is None and self.energy_name_or_path is None:
                raise ValueError(
                    f"energy_type is {self.energy_type!r} but energy_config is missing. Give the configuration of a "
                    "causal language model, or its name as energy_name_or_path."
                )
            if not getattr(self.energy_config, "causal", True):
                raise ValueError(
                    f"energy_type is {self.energy_type!r}, which needs a causal language model, but energy_config says "
                    "causal=False. Use energy_type='nce' for a bidirectional energy network."
                )
        if self.energy_weights == "shared" and (self.energy_type != "nce" or self.denoiser_config.model_type != "mdlm"):
            raise ValueError(
                f"energy_weights='shared' with energy_type={self.energy_type!r} and a "
                f"{self.denoiser_config.model_type!r} denoiser: only an NCE energy can share its trunk, and only with "
                "an MDLM denoiser. Use energy_weights='own'."
            )
        if self.energy_adapter_rank < 0 or (self.energy_adapter_rank and self.energy_weights != "shared"):
            raise ValueError(
                f"energy_adapter_rank is {self.energy_adapter_rank} with energy_weights={self.energy_weights!r}, but "
                "it must be 0, or positive with energy_weights='shared'."
            )
        self._validate_rows()
        if self.energy_name_or_path is not None and self.energy_type not in ("ar", "coar"):
            raise ValueError(
                f"energy_name_or_path is {self.energy_name_or_path!r}, but energy_type is {self.energy_type!r}: only "
                "an AR energy ('ar', 'coar') can be kept by reference. Leave it None to store the energy inside."
            )

    def _validate_network_energy(self):
        """The NCE network exists for this denoiser."""
        if self.energy_config is None:
            raise ValueError(
                f"energy_type='nce' needs an energy_config: a {self.denoiser_config.model_type or 'plain'!r} denoiser "
                "is no MDLM, so an energy network cannot start from it. Give an MDLMConfig with its vocabulary."
            )
        if getattr(self.energy_config, "model_type", None) not in (MDLMConfig.model_type, ""):
            raise ValueError(
                f"energy_config is of type {self.energy_config.model_type!r}, but the NCE energy needs an MDLMConfig. "
                "Use energy_type='ar' or 'coar' with a causal language model."
            )

    def _validate_rows(self):
        """The energy has a row for every id it can be given, as far as the configurations tell."""
        rows = vocabulary_size(self.energy_config)
        if rows is None or self.vocab_size is None or self.mask_token_id is None or self.energy_type == "none":
            return
        highest = self.vocab_size - 1
        if self.energy_type == "nce":
            if rows <= max(highest, self.mask_token_id):
                raise ValueError(
                    f"The denoiser has ids up to {highest}, but the NCE energy network has only {rows} rows. Give it "
                    "the denoiser's vocabulary, mask token included."
                )
            return
        highest = highest_emitted(self.vocab_size, self.mask_token_id, self.absent_token_ids)
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows "
                f"(ids 0 to {rows - 1}). Use a causal language model of the same vocabulary."
            )
        foreign_mask = getattr(self.energy_config, "mask_token_id", None)
        if self.energy_config.model_type == MDLMConfig.model_type and foreign_mask != self.mask_token_id:
            if foreign_mask <= highest:
                raise ValueError(
                    f"The denoiser can emit id {foreign_mask}, but that is the mask token of the autoregressive energy "
                    f"model. Train both with one vocabulary (mask_token_id={self.mask_token_id})."
                )
        start = start_token(self.energy_config)
        if start is not None and start >= rows:
            raise ValueError(
                f"The autoregressive energy model's bos_token_id is {start}, but it has only {rows} rows. Set "
                "energy.config.bos_token_id to its start token, or to None."
            )

    def validate_token_ids(self):
        """The mask token is known and, where the vocabulary is, inside it."""
        if self.mask_token_id is None:
            raise ValueError(
                "mask_token_id is not known: the denoiser's configuration has none. Pass mask_token_id=..., for "
                "example tokenizer.mask_token_id."
            )
        own = getattr(self.denoiser_config, "mask_token_id", None)
        if own is not None and own != self.mask_token_id:
            raise ValueError(
                f"mask_token_id is {self.mask_token_id}, but the denoiser's configuration says {own}. Leave it out, or "
                "correct the denoiser's configuration."
            )
        lacks_mask = isinstance(self.denoiser_config, PlainModuleConfig)  # its logits may stop before the mask
        limit = None if self.vocab_size is None else self.vocab_size + lacks_mask
        if self.mask_token_id < 0 or (limit is not None and self.mask_token_id >= limit):
            allowed = "at least 0" if self.vocab_size is None else f"between 0 and {self.vocab_size - 1}"
            raise ValueError(f"mask_token_id is {self.mask_token_id}, but it must be {allowed} (the denoiser's ids).")
        check_absent_ids(self.absent_token_ids, None)


def as_config(config: PreTrainedConfig | dict | None, name: str) -> PreTrainedConfig | None:
    """A sub-configuration from its dictionary; `mdlm` is known here, the rest must be known to transformers."""
    if not isinstance(config, dict):
        return config
    config = copy.deepcopy(config)
    model_type = config.pop("model_type", MDLMConfig.model_type)
    if model_type == MDLMConfig.model_type:
        return MDLMConfig(**config)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has model_type {model_type!r}, which transformers does not know. Load that model by itself with "
            "trust_remote_code=True and build the whole with EDLMForMaskedDiffusion.from_components."
        )
    return CONFIG_MAPPING[model_type](**config)


def check_choice(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but it must be one of {', '.join(map(repr, allowed))}.")


__all__ = ["EDLMConfig", "ENERGY_TYPES", "ENERGY_SCOPES", "ENERGY_WEIGHTS"]
