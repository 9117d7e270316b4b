"""`generate()`: masked diffusion with a residual energy, around the paper's Algorithm 1."""

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
from .canvas_edlm import Canvas
from .drafting import Speculative
from .energies import Energy
from .evaluation_mode import in_eval_mode
from .generation_arguments import (
    CheckedProcessor,
    ImpossibleTokens,
    check_callback,
    check_size,
    check_streamer,
    check_types,
)
from .generation_config_edlm import (
    EDLMGenerationConfig,
    EDLMGenerationOutput,
    bool_from,
)
from .generation_preparation import PreparationMixin
from .generation_records import Progress, Records
from .importance_sampling import ImportanceSampling, Likeliest
from .masked_diffusion import make_schedule
from .network_facts import longest_text
from .noise import Noise
from .proposal import ProposingMixin
from .remasking import Edit, Gibbs
from .reverse_chain import ReverseProcess, chain
from .samplers import MASKS, TOKENS
from .speculative_sampling import SpeculativeSampling, target_of
from .stopping_edlm import lengths_when_stopped, stop_ended_rows, stopping_criteria_list

logger = logging.get_logger(__name__)


class MaskedDiffusionGenerationMixin(PreparationMixin, ProposingMixin, GenerationMixin):
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
        """Fill masks by the reverse chain of masked diffusion, with an energy or without.

        In every step the denoiser proposes k candidates, and the energy picks one of them.

        `temperature`, `top_k`, `top_p` and logits processors change the proposal and with it the
        distribution that is sampled. The energy term uses the proposal as it was really drawn from.
        The model generates in eval mode and gets its mode back.

        Args:
            input_ids: (B, P). Mask tokens in it are filled, everything else is kept.
                `max_new_tokens` or `max_length` append masks. Without it `batch_size` rows of
                `max_length` (the model's length unless given) tokens.
            attention_mask: (B, P), 0 at padding on either side. Every row goes on after its own
                last token.
            generation_config: an `EDLMGenerationConfig`. Keyword arguments override it.
            logits_processor: applied to the proposal, position by position, before temperature,
                top_k and top_p. The mask token stays impossible.
            stopping_criteria: criteria of transformers or a list of them, asked after every block
                about the finished beginning of every row. The later blocks of a row that is done
                become padding. Those that look at the last token (`EosTokenCriteria`,
                `StopStringCriteria`) are asked about every token of the block.
            streamer: gets prompt and finished blocks of the first row by `put`, and after every
                step its draft by `put_draft` and the number of steps by `put_step`, where it has
                these.
            energy: a callable (candidate_ids (B, k, L), noisy_ids (B, L),
                proposal_log_probs (B, k), attention_mask) -> (B, k), low = likely, in place of the
                model's own. Rows come aligned left. With `energy_scope="revealed"`, positions
                outside the reveal set still hold the mask.
            generator: the source of all randomness, torch's global one unless given. The same seed
                and batch give the same tokens.
            batch_size: how many rows to generate where `input_ids` is not given.
            progress_bar: show one.
            token_type_ids: (B, P), for denoisers that take them. New tokens get the type of the
                last one of their row.
            callback_on_step_end: called after every step that reveals something, as
                callback(model, step, t, {"ids"}) of diffusers: its number, the times (B,) at which
                it started, and a copy of the canvas (B, W).

        Returns:
            Token ids (B, P + new), or an `EDLMGenerationOutput` with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: an unknown argument or a bad value, a text that does not fit the model, a
                mask token that is marked as padding, or an energy of a wrong shape, NaN, -inf, or
                +inf for all candidates.
        """
        # 1. Arguments, checked before anything is computed
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
        check_callback(callback_on_step_end)

        # 2. The rows with masks appended (B, W), and the distribution that fills them
        config = self._prepare_generation_config(generation_config, **kwargs)
        canvas = self._prepare_canvas(input_ids, attention_mask, config, batch_size, token_type_ids)
        process = self.reverse_process(config, energy, logits_processor)
        num_texts, width = canvas.ids.shape
        if process.energy is not None:
            num_texts = num_texts * config.num_candidates
        check_size(num_texts, width)

        # 3. Records of the steps, and the tokens that a step fills in: draws, or the likeliest ones
        most_steps = self._most_steps(canvas, process)
        records = Records(canvas, config, energy_has_a_part(process), most_steps)
        progress = Progress(canvas, streamer, progress_bar, self, callback_on_step_end)
        noise = Noise(generator)
        if process.target is not None:
            choose = SpeculativeSampling(process, noise, records)
        elif config.do_sample is False:
            choose = Likeliest(records)
        else:
            choose = ImportanceSampling(process, noise, records)

        # 4. Block after block. Rows that have ended are filled no more, unless their end may change.
        may_stop = process.sampler.sees != MASKS and not process.sampler.revises
        may_stop = may_stop and bool(config.end_tokens)
        with progress:
            for view in canvas.views(config.block_length, longest_text(self)):
                # x_t (B, W'), and the positions that do not belong to the prompt
                ids = canvas.read(view)
                generated = canvas.generated.gather(1, view.index)
                state = process.state(ids, view.free, view.present, view.token_types, generated)
                steps_of_block = process.sampler.steps_in(view.free.cpu())
                records.begin_block(state)
                progress.begin_block(view, steps_of_block)

                # x_t -> x_s, step after step
                num_steps = 0
                for step in chain(process, state, choose, noise):
                    num_steps = step.index + 1
                    progress.step(step, state)
                    records.step(step, view)
                    if may_stop:
                        stop_ended_rows(state, view, config.end_tokens)

                # Steps with fixed times all count, the last ones too if they reveal nothing
                if process.sampler.has_clock:
                    num_steps = steps_of_block
                progress.advance_to(num_steps)
                canvas.write(view, state.ids)
                records.end_block(view, num_steps)

                # Ends of texts
                if config.end_tokens:
                    canvas.end_rows(config.end_tokens)
                if criteria:
                    canvas.cut(lengths_when_stopped(criteria, canvas, view))
                progress.end_block(num_steps)
                if criteria and not canvas.masked.any():
                    break

        return records.output() if config.return_dict_in_generate else canvas.output()

    def count_steps(self, input_ids=None, attention_mask=None, **options) -> int:
        """The most steps that `generate(input_ids, attention_mask, **options)` takes, all blocks.

        Raises:
            ValueError: as `generate()`.
        """
        config = self._prepare_generation_config(None, **options)
        canvas = self._prepare_canvas(input_ids, attention_mask, config)
        sampler = config.make_sampler()
        views = canvas.views(config.block_length, longest_text(self))
        return sum(sampler.steps_in(view.free.cpu()) for view in views)

    def _most_steps(self, canvas: Canvas, process: ReverseProcess) -> int:
        """An upper limit of the steps of all blocks, which costs less than `count_steps`."""
        blocks = canvas.num_blocks(process.config.block_length)
        return blocks * process.sampler.steps_in(canvas.free.cpu())

    def reverse_process(
        self,
        config: EDLMGenerationConfig | None = None,
        energy: Callable | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **options,
    ) -> ReverseProcess:
        """The schedule, sampler, proposal and energy with which this model samples.

        Args:
            config: complete. Unless given it is made from `options`, as `generate()` does.
            energy: a function in place of the model's own energy.
            logits_processor: as in `generate()`.

        Raises:
            ValueError: the schedule does not reach the full mask, `energy` is not callable, the
                model's own energy was trained for another scope, or the sampler does not go with an
                energy.
        """
        if config is None:
            config = self._prepare_generation_config(None, **options)
        schedule_params = self.config.noise_schedule_params or {}
        schedule = make_schedule(self.config.noise_schedule, **schedule_params)
        schedule.check_reaches_full_mask()

        # The function of the user, or the model's own energy
        own_scope = getattr(self.config, "energy_scope", "sequence")
        config.energy_scope = config.energy_scope or own_scope
        if energy is None:
            energy = self.own_energy(config.energy_scope, config.energy_chunk_size)
        else:
            energy = CallableEnergy(energy)

        # Speculative sampling draws from the AR model itself. There are no candidates to weigh.
        sampler = config.make_sampler()
        target = None
        if isinstance(sampler, Speculative):
            target = target_of(energy, config)
            energy = None

        # k = 1 switches the energy off
        process = ReverseProcess(
            model=self,
            config=config,
            schedule=schedule,
            sampler=sampler,
            processors=self._proposal_processors(config, logits_processor),
            energy=energy if config.num_candidates > 1 else None,
            target=target,
        )
        check_energy_of_sampler(process)
        return process

    def own_energy(self, scope: str, chunk_size: int | None = None) -> Energy | None:
        """The energy that belongs to the model, None where it has none."""
        return None

    def _proposal_processors(self, config: EDLMGenerationConfig, given) -> LogitsProcessorList:
        """The processors of the user, then temperature, top_k, top_p and min_p.

        The mask token is made impossible again after the processors of the user.
        """
        processors = LogitsProcessorList(CheckedProcessor(processor) for processor in given or [])
        if processors:
            processors.append(ImpossibleTokens(self.config))

        # As in transformers: all that follows belongs to sampling
        if config.do_sample is False:
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
                "temperature, top_k, top_p and min_p change the proposal, and with it the "
                "distribution: samples are no longer those of the model. Pass temperature=1.0 (and "
                "no top_k, top_p, min_p) for the model's own."
            )
        return LogitsProcessorList([*processors, *filters])


def energy_has_a_part(process: ReverseProcess) -> bool:
    """Whether an energy has a part in the tokens that are sampled."""
    low, high = process.window
    return low <= high


def check_energy_of_sampler(process: ReverseProcess) -> None:
    """Raise ValueError if the sampler and the energy do not go together."""
    # Any energy goes with a reveal set that does not depend on the drawn tokens
    if process.sampler.sees != TOKENS or not energy_has_a_part(process):
        return

    sampler = process.sampler
    if isinstance(sampler, Gibbs):
        sampler = sampler.base
    if isinstance(sampler, Edit) or process.config.energy_scope == "revealed":
        raise ValueError(
            f"The sampler {process.config.sampler!r} picks positions by the tokens that were "
            "drawn, which does not go with this energy. Pass num_candidates=1, or a sampler that "
            "does not look at tokens, such as 'spaced'."
        )


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "MaskedDiffusionGenerationMixin"]
