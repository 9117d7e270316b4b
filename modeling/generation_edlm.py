"""Generation by masked diffusion with a residual energy: what users expect around the paper's Algorithm 1."""

import inspect
from collections.abc import Callable

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import logging

from .callable_energy import CallableEnergy
from .canvas_edlm import Canvas, real_positions
from .energies import Energy
from .evaluation_mode import in_eval_mode
from .generation_arguments import (
    CheckedProcessor,
    ImpossibleTokens,
    aligned_token_types,
    check_callback,
    check_size,
    check_streamer,
    check_types,
)
from .generation_config_edlm import (
    SUPPORTED,
    EDLMGenerationConfig,
    EDLMGenerationOutput,
    bool_from,
    whole_number_from,
)
from .generation_records import Records, Show
from .importance_sampling import ImportanceSampling, Likeliest
from .masked_diffusion import check_token_ids, make_schedule
from .network_facts import longest_text, num_ids
from .noise import Noise
from .proposal import ProposingMixin
from .remasking import Edit
from .reverse_chain import ReverseProcess, chain
from .sampler_choice import PARAMETERS, parameters_of
from .samplers import TOKENS
from .stopping_edlm import lengths_when_stopped, stopping_criteria_list

logger = logging.get_logger(__name__)


class MaskedDiffusionGenerationMixin(ProposingMixin, GenerationMixin):
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
        callback_on_step_end: Callable | None = None,
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
            callback_on_step_end: called after every step that reveals something as callback(model, step, t, {"ids"}),
                as in diffusers: its number, the times (B,) at which it started, and a copy of the canvas (B, W).

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
        check_callback(callback_on_step_end)
        config = self._prepare_generation_config(generation_config, **kwargs)
        canvas = self._prepare_canvas(input_ids, attention_mask, config, batch_size, token_type_ids)
        process = self.reverse_process(config, energy, logits_processor)
        rows = len(canvas.ids) * (config.num_candidates if process.energy is not None else 1)
        check_size(rows, canvas.ids.shape[1])
        records = Records(canvas, config, acts(process), self._most_steps(canvas, process))
        show = Show(streamer, canvas, progress_bar, self, callback_on_step_end)

        # 3. What a step fills in: draws, or the likeliest tokens
        noise = Noise(generator)
        choose = ImportanceSampling(process, noise, records) if config.do_sample is not False else Likeliest(records)

        # 4. Block after block. Rows that have ended are filled no more.
        for view in canvas.views(config.block_length, longest_text(self)):
            generated = canvas.generated.gather(1, view.index)
            state = process.state(canvas.read(view), view.free, view.present, view.token_types, generated)
            records.begin_block(state)
            show.begin_block(view, process.sampler.steps_in(view.free.cpu()))
            taken = 0
            for step in chain(process, state, choose, noise):
                show.step(step, state)
                records.step(step, view)
                taken = step.index + 1
            taken = show.num_steps if process.sampler.has_clock else taken
            show.rest(taken)
            canvas.write(view, state.ids)
            records.end_block(view, taken)

            if config.end_tokens:
                canvas.end_rows(config.end_tokens)
            if criteria:
                canvas.cut(lengths_when_stopped(criteria, canvas, view))
            show.end_block(taken)
            if criteria and not canvas.masked.any():
                break
        show.end()

        return records.output() if config.return_dict_in_generate else canvas.output()

    def count_steps(self, input_ids=None, attention_mask=None, **options) -> int:
        """How many steps `generate(input_ids, attention_mask, **options)` takes at most, all blocks.

        Raises:
            ValueError: as `generate()`.
        """
        config = self._prepare_generation_config(None, **options)
        canvas = self._prepare_canvas(input_ids, attention_mask, config)
        sampler = config.make_sampler()
        views = canvas.views(config.block_length, longest_text(self))
        return sum(sampler.steps_in(view.free.cpu()) for view in views)

    def _most_steps(self, canvas: Canvas, process: ReverseProcess) -> int:
        """An upper limit of the steps of all blocks."""
        blocks = canvas.num_blocks(process.config.block_length)
        return blocks * process.sampler.steps_in(canvas.free.cpu())

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

    def reverse_process(
        self,
        config: EDLMGenerationConfig | None = None,
        energy: Callable | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **options,
    ) -> ReverseProcess:
        """What `config` makes of the model: its schedule, sampler, proposal and energy.

        Args:
            config: complete; made from `options`, as `generate()` does, unless given.
            energy: a function in place of the model's own energy. logits_processor: as in `generate()`.

        Raises:
            ValueError: the schedule does not reach the full mask, `energy` is not callable, the model's own energy was
                trained for another scope, or the sampler does not go with an energy.
        """
        if config is None:
            config = self._prepare_generation_config(None, **options)
        schedule = make_schedule(self.config.noise_schedule, **(self.config.noise_schedule_params or {}))
        schedule.check_reaches_full_mask()
        config.energy_scope = config.energy_scope or getattr(self.config, "energy_scope", "sequence")

        weigh = None if energy is None else CallableEnergy(energy)
        if weigh is None:
            weigh = self.own_energy(config.energy_scope, config.energy_chunk_size)
        process = ReverseProcess(
            model=self,
            config=config,
            schedule=schedule,
            sampler=config.make_sampler(),
            processors=self._proposal_processors(config, logits_processor),
            energy=weigh if config.num_candidates > 1 else None,
        )
        check_together(process)
        return process

    def own_energy(self, scope: str, chunk_size: int | None = None) -> Energy | None:
        """The energy that belongs to the model, None where it has none."""
        return None

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
        if config.min_p:
            filters.append(MinPLogitsWarper(config.min_p))
        if filters:
            logger.warning_once(
                "temperature, top_k, top_p and min_p change the proposal, and with it the law that is sampled: samples "
                "are no longer those of the model. Pass temperature=1.0 (and no top_k, top_p, min_p) for the model's "
                "own law."
            )
        return LogitsProcessorList([*processors, *filters])


def acts(process: ReverseProcess) -> bool:
    """Whether an energy has a part in what is sampled."""
    low, high = process.window
    return process.config.do_sample is not False and low <= high


def check_together(process: ReverseProcess) -> None:
    """Raise ValueError if the sampler and the energy do not go together."""
    if process.sampler.sees != TOKENS or not acts(process):
        return
    if isinstance(process.sampler, Edit) or process.config.energy_scope == "revealed":
        raise ValueError(
            f"The sampler {process.config.sampler!r} picks positions by the tokens that were drawn, which does not go "
            "with this energy. Pass num_candidates=1, or a sampler that does not look at tokens, such as 'spaced'."
        )


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "MaskedDiffusionGenerationMixin"]
