"""Generation by masked diffusion with a residual energy: the paper's Algorithm 1 and what users expect around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral

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

from .canvas_edlm import Canvas, View
from .generation_config_edlm import SUPPORTED, EDLMGenerationConfig, EDLMGenerationOutput, window_times
from .masked_diffusion import (
    NoiseSchedule,
    at_least_float32,
    check_token_ids,
    check_tokens_left,
    effective_sample_size,
    importance_weights,
    make_schedule,
    resample,
    sample_categorical,
    uniform,
)
from .network_facts import longest_text, num_ids
from .reverse_chain import Step, ancestral_steps, first_hitting_steps, most_confident_steps

logger = logging.get_logger(__name__)

ARGUMENT_TYPES = {
    "generation_config": (GenerationConfig, "an EDLMGenerationConfig"),
    "attention_mask": (torch.Tensor, "a tensor of the shape of input_ids"),
    "logits_processor": ((list, tuple), "a list of processors (LogitsProcessorList)"),
    "generator": (torch.Generator, "a torch.Generator, say torch.Generator().manual_seed(0)"),
}


@dataclass
class Run:
    """What one call of `generate()` does and what it records.

    Args:
        energy: (candidates (B, k, L), noisy (B, L), log p_theta per token (B, k, L), V, attention_mask (B, L),
            sigma (B,)) -> (B, k); None where no energy acts.
    """

    config: EDLMGenerationConfig
    schedule: NoiseSchedule
    processors: LogitsProcessorList
    generator: torch.Generator | None
    energy: Callable | None
    batch: int
    device: torch.device
    steps: int = 0
    energies: dict[int, torch.Tensor] = field(default_factory=dict)
    sample_sizes: dict[int, torch.Tensor] = field(default_factory=dict)
    chosen: dict[int, torch.Tensor] = field(default_factory=dict)
    history: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self):
        self.window = window_times(self.config.energy_window)
        self.denoiser_calls = torch.zeros(self.batch, dtype=torch.long)
        self.energy_calls = torch.zeros(self.batch, dtype=torch.long)

    def weighs(self, t: torch.Tensor) -> torch.Tensor:
        """Which rows the energy acts on: starting times (B,) inside the window, the ends included -> bool (B,)."""
        if self.energy is None:
            return torch.zeros_like(t, dtype=torch.bool)
        return (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)

    def steps_of(self, view: View) -> Iterator[Step]:
        free, T = view.free.cpu(), self.config.max_denoising_steps
        one_by_one = self.config.sampler == "first_hitting"
        if self.config.do_sample is False:
            return most_confident_steps(free, self.schedule, None if one_by_one else T)
        if one_by_one:
            return first_hitting_steps(free, self.schedule, self.generator)
        return ancestral_steps(free, self.schedule, T, self.generator)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Total noise for the networks: (B,) float32 on their device."""
        return self.schedule.total(t).to(self.device, torch.float32)

    def record(self, rows: torch.Tensor, energies: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> None:
        self.energy_calls[rows.cpu()] += 1
        nan = energies.new_full((self.batch, energies.shape[1]), torch.nan)
        sizes = effective_sample_size(weights).to(energies.dtype)
        self.energies[self.steps] = self.energies.get(self.steps, nan).index_copy(0, rows, energies)
        self.sample_sizes[self.steps] = self.sample_sizes.get(self.steps, nan[:, 0]).index_copy(0, rows, sizes)
        none_taken = chosen.new_full((self.batch,), -1)
        self.chosen[self.steps] = self.chosen.get(self.steps, none_taken).index_copy(0, rows, chosen)

    def stacked(self, records: dict[int, torch.Tensor], missing: float = torch.nan) -> torch.Tensor | None:
        """(steps, ...) of what was recorded, `missing` at the steps in between."""
        if not records:
            return None
        empty = torch.full_like(next(iter(records.values())), missing)
        return torch.stack([records.get(step, empty) for step in range(self.steps)])


class MaskedDiffusionGenerationMixin(GenerationMixin):
    """`generate()` for models whose `forward` gives the logits of the clean tokens."""

    @torch.no_grad()
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
        **kwargs,
    ) -> torch.LongTensor | EDLMGenerationOutput:
        """Fill masks by the reverse chain of masked diffusion, weighing k proposals per step by their energies.

        `temperature`, `top_k`, `top_p` and logits processors change the proposal and with it the law that is sampled;
        the energy term uses the proposal that was really drawn from.

        Args:
            input_ids: (B, P); mask tokens in it are filled, everything else is kept; `max_new_tokens` or `max_length`
                append masks. Without it `batch_size` rows of `max_length` (the model's length unless given) tokens.
            attention_mask: (B, P), 0 at padding on either side; every row goes on after its own last token.
            generation_config: an `EDLMGenerationConfig`; keyword arguments override it.
            logits_processor: applied to the proposal, position by position, before temperature, top_k and top_p.
            stopping_criteria: asked after every block; when all rows are done, later blocks become padding.
            streamer: gets prompt and finished blocks by `put`, drafts by `put_draft` where it has one (one row).
            energy: a callable (candidate_ids (B, k, L), noisy_ids (B, L), proposal_log_probs (B, k), attention_mask)
                -> (B, k), low = likely, in place of the model's own. Rows come aligned left. With
                `energy_scope="revealed"`, positions outside the reveal set still hold the mask.
            generator: the source of all randomness; the same seed and batch give the same tokens.
            progress_bar: show one.

        Returns:
            Token ids (B, P + new), or an `EDLMGenerationOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: an unknown argument or a bad value; the text does not fit the model; a mask token is marked as
                padding; an energy of a wrong shape, NaN, -inf, or +inf for all candidates.
        """
        check_arguments(
            generation_config=generation_config,
            attention_mask=attention_mask,
            logits_processor=logits_processor,
            generator=generator,
        )
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(f"streamer is a {type(streamer).__name__}, but it must have put(tokens) and end().")
        config = self._prepare_generation_config(generation_config, **kwargs)
        canvas = self._prepare_canvas(input_ids, attention_mask, config, batch_size)
        run = self.prepare_run(config, canvas.ids, energy, logits_processor, generator)
        run.history.append(canvas.output())
        if streamer is not None:
            streamer.put(canvas.prompt.cpu())

        for view in canvas.views(config.block_length, longest_text(self)):
            ids = canvas.read(view)
            for step in logging.tqdm(run.steps_of(view), desc="denoising", disable=not progress_bar):
                ids = self._step(ids, view, step, run)
                run.steps += 1
                if config.output_history:
                    canvas.write(view, ids)
                    run.history.append(canvas.output())
                if hasattr(streamer, "put_draft"):
                    streamer.put_draft(ids[0, int(view.free[0].long().argmax()) :].cpu())
            canvas.write(view, ids)
            if config.eos_token_id is not None:
                canvas.end_rows([config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id)
            if streamer is not None and view.free[0].any():
                streamer.put(canvas.finished(view).cpu())
            if stopping_criteria is not None and torch.as_tensor(stopping_criteria(canvas.output(), None)).all():
                canvas.stop()
                break
        if streamer is not None:
            streamer.end()
        if not config.return_dict_in_generate:
            return canvas.output()
        return EDLMGenerationOutput(
            sequences=canvas.output(),
            energies=run.stacked(run.energies),
            effective_sample_size=run.stacked(run.sample_sizes),
            num_denoiser_calls=run.denoiser_calls,
            num_energy_calls=run.energy_calls,
            tokens_per_forward=canvas.generated.sum(-1).cpu() / run.denoiser_calls.clamp_min(1),
            history=tuple(run.history) if config.output_history else None,
            chosen=run.stacked(run.chosen, missing=-1),
        )

    # -------------------------------------------------------------------------------------------------- Algorithm 1

    def _step(self, ids: torch.Tensor, view: View, step: Step, run: Run) -> torch.Tensor:
        """x_t -> x_s for all rows; one whose reveal set is empty needs no network, whatever that is conditioned on."""
        if not len(step.rows):
            return ids
        run.denoiser_calls[step.rows] += 1
        if step.revealed is None:
            return self._take_most_confident(ids, view, step, run)
        weighs = run.weighs(step.t[step.rows])
        for rows, weigh in ((step.rows[weighs], True), (step.rows[~weighs], False)):
            if len(rows):
                ids = self._denoise(ids, view, step, rows, weigh, run)
        return ids

    def _denoise(self, ids: torch.Tensor, view: View, step: Step, rows: torch.Tensor, weigh: bool, run: Run):
        """The paper's Algorithm 1 for `rows`, whose reveal sets S are drawn already.

        Outside the window (or without an energy) only the tokens at S are ever looked at.
        """
        sigma, revealed = run.sigma(step.t[rows]), step.revealed[rows].to(ids.device)
        rows = rows.to(ids.device)
        noisy, real = ids[rows], view.present[rows]
        if not weigh:
            tokens, _, _ = self._propose(noisy, real, revealed, sigma, 1, run)
            clean = noisy.masked_scatter(revealed, tokens)
        else:
            # x^1..x^k ~ p_theta(.|x_t), jointly over all masks M (scope `sequence`) or over S (`revealed`)
            k, everywhere = run.config.num_candidates, real & (noisy == self.config.mask_token_id)
            proposed = revealed if run.config.energy_scope == "revealed" else everywhere
            tokens, log_probs, vocab_size = self._propose(noisy, real, proposed, sigma, k, run)
            candidates = fill_candidates(noisy, proposed, tokens)
            log_p_theta = fill_candidates(torch.zeros_like(noisy, dtype=log_probs.dtype), proposed, log_probs)
            # w_j = exp(-E_j / tau) / sum_i exp(-E_i / tau), pick one
            energies = run.energy(candidates, noisy, log_p_theta, vocab_size, real.long(), sigma)
            weights = importance_weights(energies, run.config.energy_temperature)
            chosen = resample(weights, run.generator)
            clean = candidates[torch.arange(len(noisy), device=ids.device), chosen]
            run.record(rows, energies, weights, chosen)
        # x_s ~ q(x_s | x_t, x_0): the tokens at S are revealed, all others stay masked
        return ids.index_copy(0, rows, torch.where(revealed, clean, noisy))

    def _propose(
        self, noisy: torch.Tensor, real: torch.Tensor, positions: torch.Tensor, sigma: torch.Tensor, k: int, run: Run
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """k tokens at the N `positions` (B, L) from p_theta(. | x_t): ids and log-probabilities (N, k), and V."""
        features, project = self.features_at(positions, noisy, attention_of(real), sigma)
        uniforms = uniform((len(features), k), noisy.device, run.generator)
        tokens, log_probs = self.draw_tokens(features, project, noisy, positions.nonzero()[:, 0], uniforms, run)
        return tokens, log_probs, project(features[:0]).shape[-1]

    def draw_tokens(
        self, features: torch.Tensor, project: Callable, noisy: torch.Tensor, row_of: torch.Tensor, uniforms, run: Run
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their log-probabilities (N, k) by uniforms (N, k), for N positions of the rows `row_of` (N,)."""
        drawn = [
            sample_categorical(self.proposal_logits(project(features[part]), noisy, row_of[part], run), uniforms[part])
            for part in chunks_of(features, project)
        ]
        tokens, log_probs = zip(*drawn, strict=True)
        return torch.cat(tokens), torch.cat(log_probs)

    def proposal_logits(self, logits: torch.Tensor, noisy: torch.Tensor, row_of: torch.Tensor, run: Run):
        """Logits (N, V) of the proposal: no mask token, then the user's processors and filters."""
        if self.config.mask_token_id < logits.shape[-1]:
            logits[:, self.config.mask_token_id] = -torch.inf
        return run.processors(noisy[row_of], logits) if run.processors else logits

    def _take_most_confident(self, ids: torch.Tensor, view: View, step: Step, run: Run) -> torch.Tensor:
        """Without sampling: the likeliest tokens at the positions where they are likeliest, ties by index."""
        rows = step.rows.to(ids.device)
        noisy, real = ids[rows], view.present[rows]
        masked = view.free[rows] & (noisy == self.config.mask_token_id)
        features, project = self.features_at(masked, noisy, attention_of(real), run.sigma(step.t[step.rows]))
        row_of, tokens, confidence = masked.nonzero()[:, 0], [], []
        for part in chunks_of(features, project):
            log_probs = self.proposal_logits(project(features[part]), noisy, row_of[part], run).log_softmax(-1)
            best = log_probs.max(-1)
            check_tokens_left(best.values.isfinite())
            tokens.append(best.indices)
            confidence.append(best.values)
        tokens, confidence = torch.cat(tokens), torch.cat(confidence)
        score = torch.full(noisy.shape, -torch.inf, dtype=confidence.dtype, device=ids.device)
        order = score.masked_scatter(masked, confidence).argsort(dim=-1, descending=True, stable=True)
        taken = order.argsort(dim=-1) < step.counts[step.rows].to(ids.device).unsqueeze(1)
        clean = noisy.masked_scatter(masked, tokens)
        return ids.index_copy(0, rows, torch.where(taken & masked, clean, noisy))

    def features_at(
        self, positions: torch.Tensor, input_ids: torch.LongTensor, attention_mask=None, timesteps=None
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """What the logits at `positions` (B, L) bool are made of, (N, ...), and the map from it to logits (N, V).

        Here the logits themselves; a model that can project few positions alone does so.
        """
        logits = self.text_logits(input_ids, attention_mask, timesteps)
        return logits[positions], lambda features: at_least_float32(features).clone()

    def text_logits(self, input_ids: torch.LongTensor, attention_mask=None, timesteps=None) -> torch.Tensor:
        """Logits (B, L, V) of rows that are aligned left, in which padding takes no part."""
        return self(input_ids=input_ids, attention_mask=attention_mask, timesteps=timesteps).logits

    # -------------------------------------------------------------------------------------------------- preparation

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
        always_set = {name for name, x in EDLMGenerationConfig.diffusion_defaults.items() if x is not None} | {
            "do_sample"
        }
        config.update(**{name: x for name, x in kwargs.items() if x is not None or name not in always_set})
        return config

    def _prepare_canvas(self, input_ids, attention_mask, config: EDLMGenerationConfig, batch_size: int) -> Canvas:
        limit = longest_text(self)
        new = config.max_new_tokens
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}, but it must be a positive integer.")
        if input_ids is not None:
            check_token_ids("input_ids", input_ids, num_ids(self), self.config.mask_token_id)
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but (batch, length) is needed.")
            if batch_size not in (1, len(input_ids)):
                raise ValueError(
                    f"batch_size is {batch_size}, but input_ids has {len(input_ids)} rows. batch_size is for texts "
                    "from nothing; for several texts per row there is num_return_sequences."
                )
            input_ids = input_ids.long()
        if input_ids is None:
            if new is None and (new := config.max_length or limit) is None:
                raise ValueError("The model does not say how long its texts are: pass max_length or max_new_tokens.")
            input_ids = torch.empty(batch_size, 0, dtype=torch.long, device=self.device)
        elif new is None:
            new = 0 if config.max_length is None else config.max_length - input_ids.shape[1]
            if new < 0:
                raise ValueError(
                    f"The prompt has {input_ids.shape[1]} tokens but max_length is {config.max_length}. Raise it, or "
                    "pass max_new_tokens."
                )
        repeats = config.num_return_sequences or 1
        input_ids = input_ids.repeat_interleave(repeats, 0)
        attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(repeats, 0)
        eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        pad = config.pad_token_id if config.pad_token_id is not None else eos
        canvas = Canvas(input_ids, attention_mask, new, self.config.mask_token_id, pad)
        self._check_length(int(canvas.lengths.max()) if len(input_ids) else 0, new, config.block_length)
        if not canvas.free.any():
            logger.warning_once("There is nothing to generate: no mask token in input_ids and no max_new_tokens.")
        return canvas

    def _check_length(self, prompt: int, new: int, block_length: int | None) -> None:
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
        own_type = getattr(self.config, "energy_type", "none")
        own_scope = getattr(self.config, "energy_scope", "sequence")
        config.energy_scope = config.energy_scope or own_scope
        if energy is not None and not callable(energy):
            raise ValueError(f"energy is a {type(energy).__name__}, but it must be a callable (see the docstring).")
        if energy is not None:
            weigh = checked_energy(energy)
        elif own_type != "none":
            if own_type == "nce" and config.energy_scope != own_scope:
                raise ValueError(
                    f"energy_scope is {config.energy_scope!r}, but the NCE energy of this model was trained for "
                    f"{own_scope!r}. Leave energy_scope out, or pass an energy of your own. If an adapter was trained "
                    "for another scope than its base, load the base with from_pretrained(..., energy_scope=...)."
                )

            def weigh(*inputs):
                chunk_size, scope = config.energy_chunk_size, config.energy_scope
                return self.candidate_energies(*inputs, chunk_size=chunk_size, energy_scope=scope)

        return Run(
            config=config,
            schedule=schedule,
            processors=self._proposal_processors(config, logits_processor),
            generator=generator,
            energy=weigh if (energy is not None or own_type != "none") and config.num_candidates > 1 else None,
            batch=len(ids),
            device=ids.device,
        )

    def _proposal_processors(self, config: EDLMGenerationConfig, given) -> LogitsProcessorList:
        processors = LogitsProcessorList(given or [])
        if config.do_sample is False:  # as in transformers: what follows belongs to sampling
            return processors
        if config.temperature not in (None, 1.0):
            processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k:
            processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1:
            processors.append(TopPLogitsWarper(config.top_p))
        if len(processors) > len(given or []):
            logger.warning_once(
                "temperature, top_k and top_p change the proposal, and with it the law that is sampled: samples are no "
                "longer those of the model. Pass temperature=1.0 (and no top_k, top_p) for the model's own law."
            )
        return processors


def check_arguments(**given) -> None:
    """Raise ValueError if an argument of `generate()` is of another type than it must be."""
    for name, value in given.items():
        kind, allowed = ARGUMENT_TYPES[name]
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is a {type(value).__name__}, but it must be {allowed}.")


def attention_of(real: torch.Tensor) -> torch.Tensor | None:
    """The attention mask (B, L) of the networks, None where nothing is padding (it lets them take faster kernels)."""
    return None if bool(real.all()) else real.long()


def chunks_of(features: torch.Tensor, project: Callable) -> Iterator[slice]:
    """Slices of the N features whose logits and float64 CDF take about 100 MB."""
    size = max(1, 2**23 // project(features[:0]).shape[-1])
    return (slice(begin, begin + size) for begin in range(0, len(features), size))


def fill_candidates(base: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """k copies of `base` (B, L) with `values` (N, k) at its N `positions` (B, L) bool: (B, k, L)."""
    filled = base.unsqueeze(-1).repeat(1, 1, values.shape[1])  # (B, L, k): row and position first, as in `values`
    filled[positions] = values
    return filled.transpose(1, 2).contiguous()


def checked_energy(energy: Callable) -> Callable:
    """A user's energy with the interface of `Run.energy`.

    Raises:
        ValueError: it does not return a tensor of shape (B, k).
    """

    def weigh(candidates, noisy, log_p_theta, vocab_size, attention_mask, sigma):
        energies = energy(candidates, noisy, log_p_theta.sum(-1), attention_mask)
        shape = tuple(energies.shape) if isinstance(energies, torch.Tensor) else type(energies).__name__
        if shape != tuple(candidates.shape[:2]):
            raise ValueError(f"energy returned {shape}, but a tensor of shape {tuple(candidates.shape[:2])} is needed.")
        return at_least_float32(energies)

    return weigh


__all__ = ["EDLMGenerationConfig", "EDLMGenerationOutput", "MaskedDiffusionGenerationMixin"]
