"""Generation by masked diffusion: start from masks, reveal tokens step by step."""

import copy

import torch
from transformers import GenerationConfig, GenerationMixin

from .masked_diffusion import draw_reveal_set, draw_tokens, make_schedule, reveal_probability, token_log_probs


class EDLMGenerationConfig(GenerationConfig):
    """`GenerationConfig` with the parameters of masked diffusion.

    Args:
        max_denoising_steps: T, the number of steps of the reverse chain (128 unless given).
    """

    diffusion_defaults = {"max_denoising_steps": 128}

    def __init__(self, **kwargs):
        for name in self.diffusion_defaults:
            setattr(self, name, kwargs.pop(name, None))
        super().__init__(**kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "EDLMGenerationConfig":
        """Special tokens of the model; end-of-text stays off where it is the start token too (as in mdlm-owt)."""
        config = model_config if isinstance(model_config, dict) else model_config.to_dict()
        bos, eos, pad = (config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
        return cls(bos_token_id=bos, eos_token_id=None if eos == bos else eos, pad_token_id=pad)

    def validate(self, **kwargs):
        steps = self.max_denoising_steps
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"max_denoising_steps is {steps!r}, but it must be a positive integer.")
        super().validate(**kwargs)


class MaskedDiffusionGenerationMixin(GenerationMixin):
    """`generate()` for models whose `forward` gives the logits of the clean tokens."""

    def adjust_generation_fn(self, generation_config, from_auto_class, from_pipeline, name_or_path, *args, **kwargs):
        super().adjust_generation_fn(generation_config, from_auto_class, from_pipeline, name_or_path, *args, **kwargs)
        if self.generation_config._from_model_config:
            self.generation_config = EDLMGenerationConfig.from_model_config(self.config)
        else:
            self.generation_config = EDLMGenerationConfig.from_dict(self.generation_config.to_dict())

    def _prepare_generation_config(self, generation_config, **kwargs) -> tuple[EDLMGenerationConfig, dict]:
        """Defaults, overridden by the model's configuration, then the given one, then the keyword arguments."""
        config = EDLMGenerationConfig(**EDLMGenerationConfig.diffusion_defaults)
        for given in (self.generation_config, generation_config):
            if given is not None:
                config.update(**{name: value for name, value in given.to_dict().items() if value is not None})
        return config, config.update(**copy.copy(kwargs))

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 1,
        **kwargs,
    ) -> torch.LongTensor:
        """Fill the mask tokens of `input_ids` by the T-step ancestral sampler of masked diffusion.

        Args:
            input_ids: (B, P); mask tokens in it are filled, all others kept; `max_new_tokens` or `max_length` append
                masks. Without it `batch_size` rows of `max_length` (`model_length` unless given) masks.
            attention_mask: (B, P), 0 at padding.
            generator: source of all randomness.

        Returns:
            (B, P + new) token ids.

        Raises:
            ValueError: an unknown argument, a bad value, or a noise schedule that does not reach the full mask.
        """
        config, unknown = self._prepare_generation_config(generation_config, **kwargs)
        if unknown:
            raise ValueError(f"generate() does not know {', '.join(unknown)}.")
        ids, attention_mask = self._append_masks(input_ids, attention_mask, config, batch_size)
        schedule = make_schedule(self.config.noise_schedule, **(self.config.noise_schedule_params or {}))
        schedule.check_reaches_full_mask()

        times = torch.linspace(1, 0, config.max_denoising_steps + 1, dtype=torch.float64)
        for t, s in zip(times[:-1], times[1:], strict=True):
            masked = (ids == self.config.mask_token_id) & (attention_mask != 0)
            revealed = draw_reveal_set(
                masked, reveal_probability(schedule.alpha(s), schedule.alpha(t)).item(), generator
            )
            rows = revealed.any(-1)
            if not rows.any():
                continue
            sigma = schedule.total(t).to(ids.device, torch.float32).expand(int(rows.sum()))
            logits = self(ids[rows], attention_mask=attention_mask[rows], timesteps=sigma).logits
            log_probs = token_log_probs(logits[revealed[rows]], self.config.mask_token_id)
            ids[revealed] = draw_tokens(log_probs, generator=generator).squeeze(-1)
        return ids

    def _append_masks(self, input_ids, attention_mask, config, batch_size):
        length = self.config.max_position_embeddings
        if input_ids is None:
            input_ids = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)
        elif config.max_new_tokens is None and config.max_length is None:
            length = input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if config.max_new_tokens is not None:
            length = input_ids.shape[1] + config.max_new_tokens
        elif config.max_length is not None:
            length = config.max_length
        new = length - input_ids.shape[1]
        if new < 0 or length > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} given tokens and a length of {length} do not fit: the prompt must not be longer "
                f"than max_length, nor max_length than the model's {self.config.max_position_embeddings}."
            )
        masks = input_ids.new_full((len(input_ids), new), self.config.mask_token_id)
        visible = attention_mask.new_ones(masks.shape)
        return torch.cat([input_ids, masks], 1), torch.cat([attention_mask, visible], 1)


__all__ = ["EDLMGenerationConfig", "MaskedDiffusionGenerationMixin"]
