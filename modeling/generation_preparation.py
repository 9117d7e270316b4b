"""The start of a call of `generate()`: the complete configuration, and rows with masks."""

import inspect

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .canvas_edlm import Canvas, real_positions
from .generation_arguments import check_size, checked_token_types
from .generation_config_edlm import SUPPORTED, EDLMGenerationConfig, whole_number_from
from .network_facts import input_embedding, longest_text, num_ids
from .sampler_choice import CORRECTOR, PARAMETERS, SAMPLERS, parameters_of
from .vocabulary import check_token_ids

logger = logging.get_logger(__name__)


class PreparationMixin:
    """Merges configurations and prepares the canvas.

    For models that have a `config` and a `generation_config`.
    """

    def adjust_generation_fn(self, *args, **kwargs):
        """Called by `from_pretrained` of transformers: make `generation_config` one of ours."""
        super().adjust_generation_fn(*args, **kwargs)
        if self.generation_config._from_model_config:
            self.generation_config = EDLMGenerationConfig.from_model_config(self.config)
        else:
            stored = self.generation_config.to_dict()
            self.generation_config = EDLMGenerationConfig.from_dict(stored)

    def _prepare_generation_config(
        self,
        generation_config: GenerationConfig | None,
        **kwargs,
    ) -> EDLMGenerationConfig:
        """Defaults, overridden by the model's configuration, the given one, and keyword arguments.

        Raises:
            ValueError: an argument is unknown, or a value is not allowed.
        """
        # 1. The names that are known
        given = set_values(generation_config)
        defaults = EDLMGenerationConfig.diffusion_defaults
        allowed = SUPPORTED | set(defaults)
        metadata = {"transformers_version", "_from_model_config"}
        unknown = (set(given) - metadata | set(kwargs)) - allowed
        if unknown:
            raise ValueError(
                f"generate() does not know {', '.join(sorted(unknown))}. Besides its own arguments "
                f"it takes {', '.join(sorted(allowed))}."
            )

        # 2. None switches off what can be off (eos_token_id=None), else it means "not given"
        always_set = {name for name, value in defaults.items() if value is not None}
        always_set.add("do_sample")
        for name in always_set & set(kwargs):
            if kwargs[name] is None:
                del kwargs[name]

        # 3. The later values override the earlier ones
        config = EDLMGenerationConfig()
        of_call = given | kwargs
        of_model = without_other_samplers(set_values(self.generation_config), of_call)
        values = of_model | given
        config.update(**{name: value for name, value in values.items() if name in allowed})
        config.update(**kwargs)

        # 4. Values that belong together
        self._check_special_tokens(config, of_call)
        config.make_sampler()
        return config

    def _check_special_tokens(self, config: EDLMGenerationConfig, given: dict) -> None:
        """Check that the special tokens of a call can stand in a text.

        Those of the model's configuration are left out where they cannot.

        Raises:
            ValueError: an end-of-text or padding token in the values `given` by a call is outside
                the vocabulary, or the mask token.
        """
        vocab_size = num_ids(self)
        mask = self.config.mask_token_id
        padding = [] if config.pad_token_id is None else [config.pad_token_id]

        def is_wrong(token: int) -> bool:
            is_outside = token < 0 or (vocab_size is not None and token >= vocab_size)
            return is_outside or token == mask

        for name, ids in (("eos_token_id", config.end_tokens), ("pad_token_id", padding)):
            right = [token for token in ids if not is_wrong(token)]
            if right == ids:
                continue

            # A wrong token of a call is a mistake, one of the model's configuration is left out
            if given.get(name) is not None:
                last = "..." if vocab_size is None else vocab_size - 1
                raise ValueError(
                    f"{name} is {getattr(config, name)}, but a text holds ids from 0 to {last} "
                    f"without the mask token {mask}. Use the tokenizer of the model."
                )
            setattr(config, name, right or None)

    def _prepare_canvas(
        self,
        input_ids,
        attention_mask,
        config: EDLMGenerationConfig,
        batch_size: int = 1,
        token_type_ids=None,
    ) -> Canvas:
        """The rows to fill, with masks appended to them.

        Nothing large is made before sizes are checked.

        Raises:
            ValueError: ids, attention mask or token types are not what they must be, or the text is
                too long.
        """
        # 1. Given ids (B, P), or rows from nothing (B, 0), and the number of masks to append
        batch_size = whole_number_from("batch_size", batch_size, 1) or 1
        input_ids = self._prepare_input_ids(input_ids, batch_size)
        new = self._num_new_tokens(input_ids, config)
        if input_ids is None:
            self._check_length(0, new, config.block_length)
            check_size(batch_size, new)
            input_ids = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)

        # 2. Where they are text, and their types, (B, P) each
        real = real_positions(input_ids, attention_mask)
        takes_types, num_types = self._token_types()
        types = checked_token_types(token_type_ids, input_ids, takes_types, num_types)
        longest_prompt = int(real.sum(-1).max()) if len(real) else 0
        self._check_length(longest_prompt, new, config.block_length)

        # 3. Several rows for every given one
        repeats = config.num_return_sequences or 1
        check_size(len(input_ids) * repeats, input_ids.shape[1] + new)
        input_ids = input_ids.repeat_interleave(repeats, 0)
        real = real.repeat_interleave(repeats, 0)
        if types is not None:
            types = types.repeat_interleave(repeats, 0)

        # 4. The canvas
        pad = config.pad_token_id
        if pad is None and config.end_tokens:
            pad = config.end_tokens[0]
        canvas = Canvas(input_ids, real, new, self.config.mask_token_id, pad, types)
        if canvas.free.any():
            self._check_mask_is_embedded()
        else:
            logger.warning_once("There is nothing to generate: no mask token in input_ids and no max_new_tokens.")
        return canvas

    def _check_mask_is_embedded(self) -> None:
        """Raise ValueError if the embedding of the model ends before the mask token."""
        rows = getattr(input_embedding(self), "num_embeddings", None)
        mask_token_id = self.config.mask_token_id
        if rows is not None and mask_token_id >= rows:
            raise ValueError(
                f"mask_token_id is {mask_token_id}, but the embedding of the model has the ids 0 to {rows - 1}. Resize "
                "it to hold the mask, or set config.mask_token_id to the id that it has now."
            )

    def _prepare_input_ids(self, input_ids, batch_size: int) -> torch.LongTensor | None:
        """The given ids (B, P), checked, on the device of the model."""
        if input_ids is None:
            return None

        check_token_ids("input_ids", input_ids, num_ids(self), self.config.mask_token_id)
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but (batch, length) is needed.")
        if batch_size not in (1, len(input_ids)):
            raise ValueError(
                f"batch_size is {batch_size}, but input_ids has {len(input_ids)} rows. batch_size "
                "is for texts from nothing; for several texts per row there is "
                "num_return_sequences."
            )

        # Offloaded weights are on the device `meta`
        device = input_ids.device if self.device.type == "meta" else self.device
        return input_ids.to(device, torch.long)

    def _num_new_tokens(self, input_ids: torch.Tensor | None, config: EDLMGenerationConfig) -> int:
        """How many masks are appended to every row."""
        if config.max_new_tokens is not None:
            return config.max_new_tokens

        # Texts from nothing
        if input_ids is None:
            new = config.max_length or longest_text(self)
            if new is None:
                raise ValueError("The model does not say how long its texts are: pass max_length or max_new_tokens.")
            return new

        # Without a length the masks in the prompt alone are filled
        if config.max_length is None:
            return 0
        new = config.max_length - input_ids.shape[1]
        if new < 0:
            raise ValueError(
                f"The prompt has {input_ids.shape[1]} tokens but max_length is "
                f"{config.max_length}. Raise it, or pass max_new_tokens."
            )
        return new

    def _token_types(self) -> tuple[bool, int | None]:
        """Whether the denoiser takes token types, and how many there are."""
        denoiser = getattr(self, "denoiser", self)
        if hasattr(denoiser, "get_base_model"):  # under an adapter of PEFT
            denoiser = denoiser.get_base_model()

        takes_types = "token_type_ids" in inspect.signature(denoiser.forward).parameters
        config = getattr(denoiser, "config", None)
        return takes_types, getattr(config, "type_vocab_size", None)

    def _check_length(self, prompt: int, new: int, block_length: int | None) -> None:
        """Raise ValueError if the longest row, of `prompt` and `new` tokens, does not fit."""
        limit = longest_text(self)
        if limit is None:
            return

        if prompt > limit:
            raise ValueError(f"The prompt has {prompt} tokens but the model takes at most {limit}. Shorten it.")
        if prompt + new > limit and block_length is None:
            raise ValueError(
                f"{prompt} tokens and {new} new ones are more than the model's {limit}. Ask for "
                "fewer, or pass block_length to generate block after block with as much context "
                "as fits."
            )
        if block_length is not None and block_length > limit:
            raise ValueError(f"block_length is {block_length}, but the model takes at most {limit} tokens.")


def set_values(config: GenerationConfig | None) -> dict:
    """The values of a configuration that are not defaults of transformers, without None."""
    if config is None:
        return {}
    return {name: value for name, value in config.to_diff_dict().items() if value is not None}


def without_other_samplers(stored: dict, of_call: dict) -> dict:
    """Stored values without the parameters of other samplers than that of the call. Those of correctors are for all."""
    named = stored.get("sampler")
    sampler = of_call.get("sampler", named or "ancestral")

    # An object has its own
    kept = set(CORRECTOR)
    if isinstance(sampler, str) and sampler in SAMPLERS and named in (None, sampler):
        kept |= parameters_of(sampler)
    return {name: value for name, value in stored.items() if name not in PARAMETERS - kept}
