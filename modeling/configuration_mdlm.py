"""Configuration of the transformer of MDLM: the denoiser, and the causal baseline."""

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import PreTrainedConfig

from .masked_diffusion import canonical_schedule_name, make_schedule
from .vocabulary import check_absent_ids


def strict_config(config_class: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Make a strict dataclass of a configuration, which raises ValueError for all that is wrong.

    The errors of `strict` are of other types, both for a field that is set and for the checks
    before saving.
    """
    config_class = strict(config_class)
    set_field = config_class.__setattr__
    validate = config_class.validate

    def set_field_or_value_error(self, name, value):
        try:
            set_field(self, name, value)
        except StrictDataclassFieldValidationError as error:
            # `int` for the class, and the whole expression for a type such as `int | None`
            allowed = self.__dataclass_fields__[name].type
            if isinstance(allowed, type):
                allowed = getattr(allowed, "__name__", allowed)
            message = f"{name} is {value!r}, but a value of type {allowed} is needed."
            raise ValueError(message) from error

    def validate_or_value_error(self):
        try:
            validate(self)
        except StrictDataclassClassValidationError as error:
            # The cause is the ValueError of a method `validate_...`
            raise ValueError(str(error.__cause__)) from error

    # With this mark a subclass may be strict as well
    validate_or_value_error.__is_defined_by_strict_decorator__ = True
    config_class.__setattr__ = set_field_or_value_error
    config_class.validate = validate_or_value_error
    return config_class


@strict_config
class MDLMConfig(PreTrainedConfig):
    r"""Configuration of MDLM networks (arXiv 2406.07524).

    Fields have the names of the published configuration of `kuleshov-group/mdlm-owt`.

    Attributes:
        vocab_size: rows of the embedding, the mask token included.
        hidden_dim: width of the residual stream.
        cond_dim: width of the conditioning vector (unused when `causal`).
        n_blocks: number of transformer blocks.
        n_heads: attention heads. `hidden_dim / n_heads` must be an even integer (rotary embedding).
        model_length: longest sequence the model accepts.
        dropout: dropout of the two residual branches of a block.
        time_conditioning: whether the network sees the noise level sigma. If not, the conditioning
            vector is a constant.
        mask_token_id: id of the mask token, `vocab_size - 1` unless given.
        absent_token_ids: ranges [first, last] of ids that the tokenizer lacks, which are never
            drawn.
        causal: the paper's autoregressive baseline: causal attention, no conditioning.
        draft_width: width of the denoiser's `draft_head` (draft_head.py), 0 for none.
        draft_target_dim: hidden size of the autoregressive model whose states its `first_draft`
            reads, 0 for none, as without a head.
        noise_schedule: `loglinear`, `cosine`, `cosinesqr`, `geometric` or `linear`.
        noise_schedule_params: keyword arguments of the schedule (`eps`, or `sigma_min` and
            `sigma_max`).

    Raises:
        ValueError: a field is out of range.
    """

    model_type = "mdlm"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "n_blocks",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "model_length",
    }

    # The published sizes of mdlm-owt, with the vocabulary of GPT-2 and a mask token
    vocab_size: int = 50258
    hidden_dim: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    model_length: int = 1024
    dropout: float | int = 0.1
    time_conditioning: bool = False

    # Fields that the published configuration lacks
    mask_token_id: int | None = None
    absent_token_ids: list[list[int]] | None = None
    causal: bool = False
    draft_width: int = 0
    draft_target_dim: int = 0
    noise_schedule: str = "loglinear"
    noise_schedule_params: dict[str, float | int] | None = None

    # Usual fields of transformers
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        self.noise_schedule = canonical_schedule_name(self.noise_schedule)
        if self.draft_width == 0:
            self.draft_target_dim = 0
        super().__post_init__(**kwargs)

        # Published files store `return_dict: false`, which would turn every output into a tuple.
        self.return_dict = True
        self.validate_architecture()
        self.validate_token_ids()

    def validate_architecture(self):
        """Raise ValueError unless the sizes fit together, at construction and before saving."""
        for name in ("vocab_size", "hidden_dim", "cond_dim", "n_blocks", "n_heads", "model_length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}, but it must be a positive integer.")

        # Rotary embedding turns pairs of channels
        if self.hidden_dim % self.n_heads or (self.hidden_dim // self.n_heads) % 2:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} and n_heads={self.n_heads}: each head needs an even, whole number of "
                "channels (rotary embedding). Choose hidden_dim as a multiple of 2 * n_heads."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but it must lie in [0, 1).")
        if self.draft_width < 0 or (self.causal and self.draft_width):
            raise ValueError(
                f"draft_width is {self.draft_width} with causal={self.causal}, but it must be 0 (no head), or at least "
                "1 for a denoiser: a causal model drafts nothing."
            )
        if self.draft_target_dim < 0:
            raise ValueError(
                f"draft_target_dim is {self.draft_target_dim}, but it must be the hidden size of an autoregressive "
                "model, or 0 for none."
            )

        # The schedule checks its own parameters
        make_schedule(self.noise_schedule, **(self.noise_schedule_params or {}))

    def validate_token_ids(self):
        """Raise ValueError unless the mask token is a row of the embedding."""
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id is {self.mask_token_id}, but the vocabulary has ids 0 to {self.vocab_size - 1}. "
                "Give the id of the mask token, or enlarge vocab_size."
            )
        check_absent_ids(self.absent_token_ids, self.vocab_size)
        super().validate_token_ids()
