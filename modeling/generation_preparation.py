"""What a call of `generate()` starts from: the complete configuration, and the rows with their masks."""

import inspect

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .canvas_edlm import Canvas, real_positions
from .generation_arguments import aligned_token_types, check_size
from .generation_config_edlm import SUPPORTED, EDLMGenerationConfig, whole_number_from
from .network_facts import longest_text, num_ids
from .sampler_choice import PARAMETERS, parameters_of
from .vocabulary import check_token_ids

logger = logging.get_logger(__name__)


class PreparationMixin:
    """Merges configurations and prepares the canvas, for models that have a `config` and a `generation_config`."""

    def adjust_generation_fn(self, generation_config, from_auto_class, from_pipeline, name_or_path, *args, **kwargs):
        super().adjust_generation_fn(generation_config, from_auto_class, from_pipeline, name_or_path, *args, **kwargs)
        if self.generation_config._from_model_config:
            self.generation_config = EDLMGenerationConfig.from_model_config(self.config)
        else:
            self.generation_config = EDLMGenerationConfig.from_dict(self.generation_config.to_dict())

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs) -> EDLMGenerationConfig:
        """Defaults, overridden by the model's configuration, then the given one, then the keyword arguments."""
        allowed = SUPPORTED | set(EDLMGenerationConfig.diffusion_defaults)
        given = {} if generation_config is None else generation_config.to_diff_dict()
        given = {name: value for name, value in given.items() if value is not None}
        metadata = {"transformers_version", "_from_model_config"}
        unknown = (set(given) - metadata | set(kwargs)) - allowed
        if unknown:
            raise ValueError(
                f"generate() does not know {', '.join(sorted(unknown))}. Besides its own arguments it takes "
                f"{', '.join(sorted(allowed))}."
            )

        config = EDLMGenerationConfig()
        for values in (self.generation_config.to_diff_dict(), given):
            config.update(**{name: x for name, x in values.items() if name in allowed and x is not None})
        # An explicit None switches off what can be off (eos_token_id=None), and is "unset" for the rest.
        always_set = {name for name, x in EDLMGenerationConfig.diffusion_defaults.items() if x is not None}
        always_set.add("do_sample")
        kwargs = {name: x for name, x in kwargs.items() if x is not None or name not in always_set}
        config.update(**kwargs)
        self._check_special_tokens(config, given | kwargs)
        self._drop_parameters_of_another_sampler(config, given | kwargs)
        config.make_sampler()
        return config

    def _drop_parameters_of_another_sampler(self, config: EDLMGenerationConfig, given: dict) -> None:
        """Leave out what the model's own configuration says of a sampler that this call does not use."""
        own = parameters_of(config.sampler) if isinstance(config.sampler, str) else set()
        for name in set(PARAMETERS) & set(vars(config)) - own - set(given):
            if not name.startswith("corrector_"):
                delattr(config, name)

    def _check_special_tokens(self, config: EDLMGenerationConfig, given: dict) -> None:
        """Ids that a call gives must be tokens that can stand in a text. Those of the model are left out otherwise.

        Raises:
            ValueError: an end-of-text or padding token is outside the vocabulary, or the mask token.
        """
        size, mask = num_ids(self), self.config.mask_token_id
        padding = [] if config.pad_token_id is None else [config.pad_token_id]
        for name, ids in (("eos_token_id", config.end_tokens), ("pad_token_id", padding)):
            wrong = [i for i in ids if i < 0 or i == mask or size is not None and i >= size]
            if wrong and given.get(name) is not None:
                last = "..." if size is None else size - 1
                raise ValueError(
                    f"{name} is {getattr(config, name)}, but a text holds ids from 0 to {last} without "
                    f"the mask token {mask}. Use the tokenizer of the model."
                )
            if wrong:
                setattr(config, name, [i for i in ids if i not in wrong] or None)

    def _prepare_canvas(
        self, input_ids, attention_mask, config: EDLMGenerationConfig, batch_size: int = 1, token_type_ids=None
    ) -> Canvas:
        """The rows to fill, with masks appended to them. Nothing large is made before sizes are checked.

        Raises:
            ValueError: ids, attention mask or token types are not what they must be, or the text is too long.
        """
        batch_size = whole_number_from("batch_size", batch_size, 1) or 1
        input_ids = self._prepare_input_ids(input_ids, batch_size)
        new = self._num_new_tokens(input_ids, config)
        if input_ids is None:
            self._check_length(0, new, config.block_length)
            check_size(batch_size, new)
            input_ids = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)

        # (B, P) each: the ids, where they are text, and their types
        real = real_positions(input_ids, attention_mask)
        types = aligned_token_types(token_type_ids, input_ids, *self._token_types())
        self._check_length(int(real.sum(-1).max()) if len(real) else 0, new, config.block_length)

        repeats = config.num_return_sequences or 1
        check_size(len(input_ids) * repeats, input_ids.shape[1] + new)
        input_ids, real = (x.repeat_interleave(repeats, 0) for x in (input_ids, real))
        types = None if types is None else types.repeat_interleave(repeats, 0)

        pad = config.pad_token_id
        if pad is None and config.end_tokens:
            pad = config.end_tokens[0]
        canvas = Canvas(input_ids, real, new, self.config.mask_token_id, pad, types)
        if not canvas.free.any():
            logger.warning_once("There is nothing to generate: no mask token in input_ids and no max_new_tokens.")
        return canvas

    def _prepare_input_ids(self, input_ids, batch_size: int) -> torch.Tensor | None:
        """The given ids (B, P), checked, on the device of the model."""
        if input_ids is None:
            return None
        check_token_ids("input_ids", input_ids, num_ids(self), self.config.mask_token_id)
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but (batch, length) is needed.")
        if batch_size not in (1, len(input_ids)):
            raise ValueError(
                f"batch_size is {batch_size}, but input_ids has {len(input_ids)} rows. batch_size is for texts "
                "from nothing; for several texts per row there is num_return_sequences."
            )
        device = input_ids.device if self.device.type == "meta" else self.device  # meta: offloaded weights
        return input_ids.to(device, torch.long)

    def _num_new_tokens(self, input_ids: torch.Tensor | None, config: EDLMGenerationConfig) -> int:
        """How many masks are appended to every row."""
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        if input_ids is None:
            new = config.max_length or longest_text(self)
            if new is None:
                raise ValueError("The model does not say how long its texts are: pass max_length or max_new_tokens.")
            return new
        if config.max_length is None:
            return 0
        new = config.max_length - input_ids.shape[1]
        if new < 0:
            raise ValueError(
                f"The prompt has {input_ids.shape[1]} tokens but max_length is {config.max_length}. Raise it, or "
                "pass max_new_tokens."
            )
        return new

    def _token_types(self) -> tuple[bool, int | None]:
        """Whether the denoiser takes token types, and how many there are."""
        denoiser = getattr(self, "denoiser", self)
        if hasattr(denoiser, "get_base_model"):  # under an adapter of PEFT
            denoiser = denoiser.get_base_model()
        taken = "token_type_ids" in inspect.signature(denoiser.forward).parameters
        return taken, getattr(getattr(denoiser, "config", None), "type_vocab_size", None)

    def _check_length(self, prompt: int, new: int, block_length: int | None) -> None:
        """Raise ValueError if the longest row does not fit the model."""
        limit = longest_text(self)
        if limit is None:
            return
        if prompt > limit:
            raise ValueError(f"The prompt has {prompt} tokens but the model takes at most {limit}. Shorten it.")
        if prompt + new > limit and block_length is None:
            raise ValueError(
                f"{prompt} tokens and {new} new ones are more than the model's {limit}. Ask for fewer, or pass "
                "block_length to generate block after block with as much context as fits."
            )
        if block_length is not None and block_length > limit:
            raise ValueError(f"block_length is {block_length}, but the model takes at most {limit} tokens.")
