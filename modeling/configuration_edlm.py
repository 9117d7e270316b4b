"""Configuration of an EDLM: a denoiser, an energy, and how they belong together."""

import copy

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_mdlm import MDLMConfig, strict_config
from .masked_diffusion import canonical_schedule_name, make_schedule
from .network_facts import longest_text, start_token, token_ids, vocabulary_size
from .vocabulary import check_absent_ids, highest_emitted

ENERGY_TYPES = ("none", "ar", "coar", "nce")
ENERGY_SCOPES = ("sequence", "revealed")
ENERGY_WEIGHTS = ("own", "shared")

# A process without the package must know the sub-configuration of a checkpoint that travels with
# its code. A copy of this file that came with a checkpoint leaves the class of an installed package
# where it is.
registered = None
if MDLMConfig.model_type in CONFIG_MAPPING:
    registered = CONFIG_MAPPING[MDLMConfig.model_type]
if registered is None or registered.__module__.startswith("transformers_modules."):
    AutoConfig.register(MDLMConfig.model_type, MDLMConfig, exist_ok=True)


@strict_config
class PlainModuleConfig(PreTrainedConfig):
    """The known facts of a part without a transformers configuration, which cannot be saved."""

    vocab_size: int | None = None
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    max_position_embeddings: int | None = None


@strict_config
class EDLMConfig(PreTrainedConfig):
    r"""Composite configuration of `EDLMForMaskedDiffusion` (arXiv 2410.21357).

    Attributes:
        denoiser_config: configuration (or its dictionary with a `model_type`) of the masked
            language model that proposes tokens, an `MDLMConfig` unless given.
        energy_config: configuration of the energy network: a causal language model for `ar` and
            `coar`, an `MDLMConfig` for `nce`, None for `none`.
        energy_type: `none` (plain MDLM), `ar` (-log p_AR(x_0) + log p_theta(x_0|x_t)), `coar` (the
            same with the AR sum over masked positions only) or `nce` (scalar network).
        energy_scope: `sequence` weighs whole sequences, as in the paper. `revealed` weighs what a
            step reveals.
        energy_weights: `own` parameters of the energy network, or `shared`: the denoiser's trunk
            and a head of its own.
        energy_adapter_rank: rank of the low-rank updates with which a shared energy runs the trunk,
            0 for none.
        energy_name_or_path: repository or folder of an AR energy that is kept by reference instead
            of inside the checkpoint.
        energy_revision: the commit of that repository.
        mask_token_id: the mask token of the denoiser, taken from its configuration unless given.
        absent_token_ids: ranges [first, last] of ids that the tokenizer lacks, which are never
            drawn. Taken from the denoiser unless given.
        logits_shift: 1 if the logits at position i - 1 predict token i (Dream, DiffuGPT), else 0.
        noise_schedule: as in `MDLMConfig`, taken from the denoiser unless given.
        noise_schedule_params: likewise.

    Raises:
        ValueError: a value is not allowed, or the parts contradict each other.
    """

    model_type = "edlm"
    sub_configs = {"denoiser_config": AutoConfig, "energy_config": AutoConfig}

    # The two networks
    denoiser_config: PreTrainedConfig | dict | None = None
    energy_config: PreTrainedConfig | dict | None = None

    # The energy
    energy_type: str = "none"
    energy_scope: str = "sequence"
    energy_weights: str = "own"
    energy_adapter_rank: int = 0
    energy_name_or_path: str | None = None
    energy_revision: str | None = None

    # The proposal, which has the denoiser's values unless they are given
    vocab_size: int | None = None
    mask_token_id: int | None = None
    absent_token_ids: list[list[int]] | None = None
    logits_shift: int = 0
    noise_schedule: str | None = None
    noise_schedule_params: dict[str, float | int] | None = None

    # Usual fields of transformers
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.denoiser_config = as_config(self.denoiser_config, "denoiser_config") or MDLMConfig()
        self.energy_config = as_config(self.energy_config, "energy_config")
        self._take_missing_from_denoiser()

        # A new NCE network with weights of its own is made like the denoiser
        starts_from_mdlm = self.denoiser_config.model_type == MDLMConfig.model_type
        has_own_network = self.energy_type == "nce" and self.energy_weights != "shared"
        if has_own_network and starts_from_mdlm and self.energy_config is None:
            self.energy_config = copy.deepcopy(self.denoiser_config)

        # Outputs are objects, as for MDLMConfig
        super().__post_init__(**kwargs)
        self.return_dict = True
        self.validate_architecture()
        self.validate_token_ids()

    def _take_missing_from_denoiser(self) -> None:
        """Take vocabulary, special tokens and noise schedule from the denoiser unless given."""
        denoiser = self.denoiser_config
        if self.vocab_size is None:
            self.vocab_size = vocabulary_size(denoiser)
        if self.absent_token_ids is None:
            self.absent_token_ids = getattr(denoiser, "absent_token_ids", None)

        # There may be several end tokens, of the others the first one counts
        for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            ids = token_ids(denoiser, name)
            if getattr(self, name) is None and ids:
                several = name == "eos_token_id" and len(ids) > 1
                setattr(self, name, ids if several else ids[0])

        # Parameters belong to one schedule: another one does not take them
        schedule = getattr(denoiser, "noise_schedule", "loglinear")
        self.noise_schedule = canonical_schedule_name(self.noise_schedule or schedule)
        if self.noise_schedule_params is None and self.noise_schedule == schedule:
            self.noise_schedule_params = getattr(denoiser, "noise_schedule_params", None)

    def to_dict(self) -> dict:
        """The usual dictionary, without the names or paths from which the two parts were loaded."""
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
        """Raise ValueError unless the choices fit together, at construction and before saving."""
        # 1. Every choice by itself
        check_choice("energy_type", self.energy_type, ENERGY_TYPES)
        check_choice("energy_scope", self.energy_scope, ENERGY_SCOPES)
        check_choice("energy_weights", self.energy_weights, ENERGY_WEIGHTS)
        check_choice("logits_shift", self.logits_shift, (0, 1))
        make_schedule(self.noise_schedule, **(self.noise_schedule_params or {}))

        # 2. The networks
        if getattr(self.denoiser_config, "causal", False):
            raise ValueError(
                "denoiser_config describes a causal model (causal=True), which cannot denoise. Give a masked language "
                "model; the causal one can be the energy (energy_type='ar')."
            )
        if self.energy_type == "nce" and self.energy_weights == "own":
            self._validate_network_energy()
        if self.energy_type in ("ar", "coar"):
            self._validate_autoregressive_energy()
        self._validate_shared_weights()

        # 3. What they read, and where the energy is kept
        if self.energy_type == "nce":
            self._validate_rows_of_network()
        elif self.energy_type != "none":
            self._validate_rows_of_causal_model()
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

    def _validate_autoregressive_energy(self):
        """The AR energy is described or named, and is causal."""
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

    def _validate_shared_weights(self):
        """Weights are shared where there is a trunk to share, and only then updated by adapters."""
        is_shared = self.energy_weights == "shared"
        is_mdlm = self.denoiser_config.model_type == MDLMConfig.model_type
        if is_shared and not (self.energy_type == "nce" and is_mdlm):
            raise ValueError(
                f"energy_weights='shared' with energy_type={self.energy_type!r} and a "
                f"{self.denoiser_config.model_type!r} denoiser: only an NCE energy can share its trunk, and only with "
                "an MDLM denoiser. Use energy_weights='own'."
            )
        if self.energy_adapter_rank < 0 or (self.energy_adapter_rank and not is_shared):
            raise ValueError(
                f"energy_adapter_rank is {self.energy_adapter_rank} with energy_weights={self.energy_weights!r}, but "
                "it must be 0, or positive with energy_weights='shared'."
            )

    def _validate_rows_of_network(self):
        """The NCE network has a row for every id and the mask, as far as the configurations say."""
        rows = vocabulary_size(self.energy_config)
        if None in (rows, self.vocab_size, self.mask_token_id):
            return
        # It reads the noisy text, mask tokens included
        highest = self.vocab_size - 1
        if rows <= max(highest, self.mask_token_id):
            raise ValueError(
                f"The denoiser has ids up to {highest}, but the NCE energy network has only {rows} rows. Give it "
                "the denoiser's vocabulary, mask token included."
            )

    def _validate_rows_of_causal_model(self):
        """The AR model reads every id that can be drawn as text, as far as the configurations say."""
        rows = vocabulary_size(self.energy_config)
        if None in (rows, self.vocab_size, self.mask_token_id):
            return
        highest = highest_emitted(self.vocab_size, self.mask_token_id, self.absent_token_ids)
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows "
                f"(ids 0 to {rows - 1}). Use a causal language model of the same vocabulary."
            )

        # The causal baseline of this package never scores its own mask token
        if self.energy_config.model_type == MDLMConfig.model_type:
            foreign_mask = getattr(self.energy_config, "mask_token_id", None)
            if foreign_mask != self.mask_token_id and foreign_mask <= highest:
                raise ValueError(
                    f"The denoiser can emit id {foreign_mask}, but that is the mask token of the autoregressive energy "
                    f"model. Train both with one vocabulary (mask_token_id={self.mask_token_id})."
                )

        # The start token is put in front of texts
        start = start_token(self.energy_config)
        if start is not None and start >= rows:
            raise ValueError(
                f"The autoregressive energy model's bos_token_id is {start}, but it has only {rows} rows. Set "
                "energy.config.bos_token_id to its start token, or to None."
            )

    def validate_token_ids(self):
        """Raise ValueError unless the mask token is known and inside the vocabulary."""
        if self.mask_token_id is None:
            raise ValueError(
                "mask_token_id is not known: the denoiser's configuration has none. Pass mask_token_id=..., for "
                "example tokenizer.mask_token_id."
            )
        # Two different mask tokens would leave one of them in the text
        denoisers_mask = getattr(self.denoiser_config, "mask_token_id", None)
        if denoisers_mask is not None and denoisers_mask != self.mask_token_id:
            raise ValueError(
                f"mask_token_id is {self.mask_token_id}, but the denoiser's configuration says {denoisers_mask}. Leave "
                "it out, or correct the denoiser's configuration."
            )

        # Ids from 0 on, up to the mask token itself where the logits of a plain module stop before it
        allowed = "at least 0"
        is_inside = self.mask_token_id >= 0
        if self.vocab_size is not None:
            allowed = f"between 0 and {self.vocab_size - 1}"
            mask_may_follow = isinstance(self.denoiser_config, PlainModuleConfig)
            is_inside = 0 <= self.mask_token_id < self.vocab_size + mask_may_follow
        if not is_inside:
            raise ValueError(f"mask_token_id is {self.mask_token_id}, but it must be {allowed} (the denoiser's ids).")
        check_absent_ids(self.absent_token_ids, None)


def as_config(config: PreTrainedConfig | dict | None, name: str) -> PreTrainedConfig | None:
    """Make a sub-configuration from its dictionary, and leave any other as it is.

    Raises:
        ValueError: its type is neither `mdlm` nor known to transformers.
    """
    if not isinstance(config, dict):
        return config
    config = copy.deepcopy(config)
    model_type = config.pop("model_type", MDLMConfig.model_type)

    # `mdlm` is known here, whichever class is registered
    if model_type == MDLMConfig.model_type:
        return MDLMConfig(**config)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has model_type {model_type!r}, which transformers does not know. Load that model by itself with "
            "trust_remote_code=True and build the whole with EDLMForMaskedDiffusion.from_components."
        )
    return CONFIG_MAPPING[model_type](**config)


def check_choice(name: str, value, allowed: tuple) -> None:
    """Raise ValueError unless a value is one of those allowed."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} is {value!r}, but it must be one of {choices}.")
