"""Generation by masked diffusion with a residual energy: what users expect around the paper's Algorithm 1."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import logging

from .canvas_edlm import Canvas, View, real_positions
from .denoising_edlm import DenoisingMixin, Run
from .evaluation_mode import in_eval_mode
from .generation_arguments import (
    CheckedProcessor,
    ImpossibleTokens,
    aligned_token_types,
    check_size,
    check_streamer,
    check_types,
    checked_energy,
)
from .generation_config_edlm import (
    SUPPORTED,
    EDLMGenerationConfig,
    EDLMGenerationOutput,
    bool_from,
    whole_number_from,
)
from .generation_records import Records, Show
from .masked_diffusion import check_token_ids, make_schedule
from .network_facts import longest_text, num_ids
from .stopping_edlm import lengths_when_stopped, stopping_criteria_list

logger = logging.get_logger(__name__)


class MaskedDiffusionGenerationMixin(DenoisingMixin, GenerationMixin):
    """`generate()` for models whose `forward` gives the logits of the clean tokens."""

    @torch.no_grad()
    @in_eval_mode
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer=None,
        energy: Callable | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 1,
        progress_bar: bool = False,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> torch.LongTensor | EDLMGenerationOutput:
        """Fill masks by the reverse chain of masked diffusion, weighing k proposals per step by their energies.

        `temperature`, `top_k`, `top_p` and logits processors change the proposal and with it the law that is sampled.
        The energy term uses the proposal that was really drawn from. The model generates in eval mode and gets its
        mode back.

        Args:
            input_ids: (B, P). Mask tokens in it are filled, everything else is kept. `max_new_tokens` or `max_length`
                append masks. Without it `batch_size` rows of `max_length` (the model's length unless given) tokens.
            attention_mask: (B, P), 0 at padding on either side. Every row goes on after its own last token.
            generation_config: an `EDLMGenerationConfig`. Keyword arguments override it.
            logits_processor: applied to the proposal, position by position, before temperature, top_k and top_p. The
                mask token stays impossible.
            stopping_criteria: criteria of transformers or a list of them, asked after every block about the finished
                beginning of every row. The later blocks of a row that is done become padding. Those that look at the
                last token (`EosTokenCriteria`, `StopStringCriteria`) are asked about every token of the block.
            streamer: gets prompt and finished blocks of the first row by `put`, and after every step its draft by
                `put_draft` and the number of steps by `put_step`, where it has these.
            energy: a callable (candidate_ids (B, k, L), noisy_ids (B, L), proposal_log_probs (B, k), attention_mask)
                -> (B, k), low = likely, in place of the model's own. Rows come aligned left. With
                `energy_scope="revealed"`, positions outside the reveal set still hold the mask.
            generator: the source of all randomness, torch's global one unless given. The same seed and batch give the
                same tokens.
            progress_bar: show one.
            token_type_ids: (B, P), for denoisers that take them. New tokens get the type of the last one of their row.

        Returns:
            Token ids (B, P + new), or an `EDLMGenerationOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: an unknown argument or a bad value, a text that does not fit the model, a mask token that is
                marked as padding, or an energy of a wrong shape, NaN, -inf, or +inf for all candidates.
        """
        # 1. What is asked for, checked before anything is computed
        check_types(
            generation_config=generation_config,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            logits_processor=logits_processor,
            generator=generator,
        )
        check_streamer(streamer)
        criteria = stopping_criteria_list(stopping_criteria)
        progress_bar = bool_from("progress_bar", progress_bar)

        # 2. The rows, with masks appended, and how their masks are filled
        config = self._prepare_generation_config(generation_config, **kwargs)
        canvas = self._prepare_canvas(input_ids, attention_mask, config, batch_size, token_type_ids)
        run = self.prepare_run(config, canvas.ids, energy, logits_processor, generator)
        check_size(run.batch * (config.num_candidates if run.energy is not None else 1), canvas.ids.shape[1])
        records = Records(canvas, run)
        show = Show(streamer, canvas, progress_bar)

        # 3. Block after block. Rows that have ended are filled no more.
        for view in canvas.views(config.block_length, longest_text(self)):
            self._fill_block(canvas, view, run, records, show)
            if config.end_tokens:
                canvas.end_rows(config.end_tokens)
            if criteria:
                canvas.cut(lengths_when_stopped(criteria, canvas, view))
            show.end_block()
            if criteria and not canvas.masked.any():
                break
        show.end()

        return records.output() if config.return_dict_in_generate else canvas.output()

    def _fill_block(self, canvas: Canvas, view: View, run: Run, records: Records, show: Show) -> None:
        """Fill the masks of one block step by step. Steps that reveal nothing are counted and cost nothing."""
        ids, num_steps = canvas.read(view), run.num_steps(view)
        records.begin_block()
        show.begin_block(view, num_steps)

        for step in run.steps_of(view):
            show.steps(step.index, ids)
            ids = self._step(ids, view, step, run)
            show.steps(step.index + 1, ids)
            if records.keeps_history:
                canvas.write(view, ids)
                records.keep(step.index)
        show.steps(num_steps, ids)

        canvas.write(view, ids)
        run.steps += num_steps
        records.end_block()

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
        return config

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

    def prepare_run(
        self, config: EDLMGenerationConfig, ids: torch.Tensor, energy=None, logits_processor=None, generator=None
    ) -> Run:
        """What `config` makes of the model's schedule and energy, for rows like `ids` (B, L).

        Raises:
            ValueError: the schedule does not reach the full mask, `energy` is not callable, or the model's own energy
                was trained for another scope.
        """
        schedule = make_schedule(self.config.noise_schedule, **(self.config.noise_schedule_params or {}))
        schedule.check_reaches_full_mask()
        config.energy_scope = config.energy_scope or getattr(self.config, "energy_scope", "sequence")
        weigh = self._own_energy(config) if energy is None else checked_energy(energy)
        return Run(
            config=config,
            schedule=schedule,
            processors=self._proposal_processors(config, logits_processor),
            generator=generator,
            energy=weigh if config.num_candidates > 1 else None,
            batch=len(ids),
            device=ids.device,
        )

    def _own_energy(self, config: EDLMGenerationConfig) -> Callable | None:
        """The energy of the model with the interface of `Run.energy`, None where it has none."""
        energy_type = getattr(self.config, "energy_type", "none")
        if energy_type == "none":
            return None
        if energy_type == "nce" and config.energy_scope != self.config.energy_scope:
            raise ValueError(
                f"energy_scope is {config.energy_scope!r}, but the NCE energy of this model was trained for "
                f"{self.config.energy_scope!r}. Leave energy_scope out, or pass an energy of your own. If an adapter "
                "was trained for another scope than its base, load the base with from_pretrained(..., "
                "energy_scope=...)."
            )
        return partial(self.candidate_energies, chunk_size=config.energy_chunk_size, energy_scope=config.energy_scope)

    def _proposal_processors(self, config: EDLMGenerationConfig, given) -> LogitsProcessorList:
        """The user's processors, after which the mask token is impossible again, then temperature, top_k and top_p."""
        processors = LogitsProcessorList(CheckedProcessor(processor) for processor in given or [])
        if processors:
            processors.append(ImpossibleTokens(self.config))
        if config.do_sample is False:  # as in transformers: what follows belongs to sampling
            return processors
        filters = []
        if config.temperature not in (None, 1.0):
            filters.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k:
            filters.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1:
            filters.append(TopPLogitsWarper(config.top_p))
        if filters:
            logger.warning_once(
                "temperature, top_k and top_p change the proposal, and with it the law that is sampled: samples are no "
                "longer those of the model. Pass temperature=1.0 (and no top_k, top_p) for the model's own law."
            )
        return LogitsProcessorList([*processors, *filters])


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "MaskedDiffusionGenerationMixin"]
