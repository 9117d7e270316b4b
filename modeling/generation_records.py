"""What `generate()` shows while it works, and the records that it returns besides the tokens."""

from collections.abc import Callable

import torch
from transformers.utils import logging

from .canvas_edlm import Canvas, View
from .chain_state import State
from .devices import send
from .generation_arguments import check_records
from .generation_config_edlm import EDLMGenerationConfig, EDLMGenerationOutput
from .importance_weights import effective_sample_size
from .samplers import Step

# In a block of more steps than this only the steps that reveal something are shown.
MOST_SHOWN_STEPS = 2**14


class Progress:
    """Reports steps to a streamer, a callback and a progress bar. The streamer gets the first row.

    Args:
        canvas: the rows, whose finished beginnings are streamed.
        streamer: has `put` and `end`, and may have `put_draft` and `put_step`. None for no streamer.
        progress_bar: show one for every block.
        model: passed to the callback.
        callback: called as callback(model, step, t, {"ids"}). None for no callback.
    """

    def __init__(
        self,
        canvas: Canvas,
        streamer=None,
        progress_bar: bool = False,
        model=None,
        callback: Callable | None = None,
    ):
        self.canvas = canvas
        self.streamer = streamer
        self.progress_bar = progress_bar
        self.model = model
        self.callback = callback

        # Steps of the blocks before the present one
        self.earlier_steps = 0
        self.bar = None  # of the present block

        # Tokens of the first row that the streamer has got: the prompt, to begin with
        self.num_streamed = 0
        self.streams_row = streamer is not None and len(canvas.ids) > 0
        if self.streams_row:
            self.stream_finished()

    def begin_block(self, view: View, num_steps: int) -> None:
        """Begin a block that takes at most `num_steps` steps."""
        self.view = view
        self.num_steps = num_steps
        self.num_done = 0

        # (B, W') the view after the last step that changed something
        self.ids = self.canvas.read(view)

        self.fills_row = self.streams_row and bool(view.free[0].any())
        self.bar = logging.tqdm(total=num_steps, desc="denoising", disable=not self.progress_bar)

    def step(self, step: Step, state: State) -> None:
        """Report a step of the block. The steps before it that were left out changed nothing."""
        self.advance_to(step.index)
        self.ids = state.ids
        self.advance_to(step.index + 1)

        if self.callback is not None:
            # Copies, since a callback may keep or change what it gets
            number = self.earlier_steps + step.index
            values = {"ids": state.ids.clone()}
            self.callback(self.model, number, step.t.clone(), values)

    def advance_to(self, num_done: int) -> None:
        """Report the steps of the block up to `num_done`, which leave the text as it is."""
        # Steps are numbered from 1. Of very many only the last one is shown.
        numbers = range(self.num_done + 1, num_done + 1)
        if self.num_steps > MOST_SHOWN_STEPS:
            numbers = numbers[-1:]

        # The draft first, so that the text is up to date when the step is counted
        for number in numbers:
            if self.fills_row and hasattr(self.streamer, "put_draft"):
                draft = self.canvas.draft(self.view, self.ids)
                self.streamer.put_draft(draft.cpu())
            if hasattr(self.streamer, "put_step"):
                self.streamer.put_step(self.earlier_steps + number)

        self.bar.update(num_done - self.num_done)
        self.num_done = max(num_done, self.num_done)

    def end_block(self, num_steps: int) -> None:
        """End a block that took `num_steps` steps."""
        self.bar.close()
        self.earlier_steps += num_steps
        if self.fills_row:
            self.stream_finished()

    def stream_finished(self) -> None:
        """Give the streamer the finished tokens of the first row that it has not got yet."""
        num_finished = int(self.canvas.finished_lengths[0])
        tokens = self.canvas.ids[0, self.num_streamed : num_finished]
        self.streamer.put(tokens.cpu())
        self.num_streamed = num_finished

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        """End the text, or where it was interrupted let go of what is shown."""
        if error_type is None:
            if self.streamer is not None:
                self.streamer.end()
            return

        if self.bar is not None:
            self.bar.close()
        if hasattr(self.streamer, "stop"):
            self.streamer.stop()


class Records:
    """Collects the fields of `EDLMGenerationOutput`, most of which have one entry per step.

    Args:
        canvas: the rows.
        config: says which records are kept.
        energy_acts: whether an energy has a part in the call.
        most_steps: how many steps there are at most.

    Raises:
        ValueError: the records that `config` asks for would not fit into memory.
    """

    def __init__(
        self,
        canvas: Canvas,
        config: EDLMGenerationConfig,
        energy_acts: bool,
        most_steps: int,
    ):
        self.canvas = canvas
        self.batch_size = len(canvas.ids)

        # Steps of the blocks before the present one
        self.earlier_steps = 0

        # (B,) calls that a row took part in. With guidance a step is two calls of the denoiser
        self.denoiser_calls = torch.zeros(self.batch_size, dtype=torch.long, device="cpu")
        self.energy_calls = torch.zeros(self.batch_size, dtype=torch.long, device="cpu")
        self.calls_of_step = 2 if config.is_guided else 1

        # (B,) drafts of speculative sampling, and those that were accepted
        self.drafts: torch.Tensor | None = None
        self.accepted_drafts: torch.Tensor | None = None

        # Number of a step -> energies (B, k), effective sample sizes (B,), chosen candidates (B,)
        self.energies: dict[int, torch.Tensor] = {}
        self.sample_sizes: dict[int, torch.Tensor] = {}
        self.chosen: dict[int, torch.Tensor] = {}

        # Without a dictionary to return nothing is kept
        keeps_any = bool(config.return_dict_in_generate)
        self.keeps_history = keeps_any and bool(config.output_history)
        self.keeps_log_probs = keeps_any and bool(config.output_log_probs)
        if keeps_any:
            num_energies = self.batch_size * config.num_candidates
            check_records(most_steps, num_energies if energy_acts else int(self.keeps_history))

        # The sequences before the first step and after every step
        self.sequences = canvas.output()
        self.history = [self.sequences]

    def begin_block(self, state: State) -> None:
        """Begin a block. Until a step reveals something the canvas stays as it is."""
        self.state = state
        if self.keeps_history:
            self.sequences = self.canvas.output()
        if self.keeps_log_probs:
            state.log_probs = torch.full_like(state.ids, torch.nan, dtype=torch.float32)

    def step(self, step: Step, view: View) -> None:
        """Count the calls of a step, and keep the sequences after it."""
        self.denoiser_calls[step.rows] += self.calls_of_step
        if self.keeps_history:
            self.fill_history(self.earlier_steps + step.index)
            self.canvas.write(view, self.state.ids)
            self.sequences = self.canvas.output()
            self.history.append(self.sequences)

    def keep_candidates(
        self,
        step: Step,
        energies: torch.Tensor,
        weights: torch.Tensor,
        chosen: torch.Tensor,
    ) -> None:
        """Keep the energies (R, k), weights (R, k) and chosen candidates (R,) of a step."""
        self.energy_calls[step.rows] += 1
        number = self.earlier_steps + step.index
        rows = send(step.rows, energies.device)
        sizes = effective_sample_size(weights).to(energies.dtype)

        # (B, k), (B,) and (B,): NaN and -1 in rows that take no part in the step
        no_energies = energies.new_full((self.batch_size, energies.shape[1]), torch.nan)
        no_sizes = no_energies[:, 0]
        none_chosen = chosen.new_full((self.batch_size,), -1)

        self.energies[number] = no_energies.index_copy(0, rows, energies)
        self.sample_sizes[number] = no_sizes.index_copy(0, rows, sizes)
        self.chosen[number] = none_chosen.index_copy(0, rows, chosen)

    def begin_drafts(self) -> None:
        """Begin to count drafts, 0 in every row."""
        self.drafts = torch.zeros_like(self.denoiser_calls)
        self.accepted_drafts = torch.zeros_like(self.denoiser_calls)

    def keep_drafts(self, step: Step, num_drafts: torch.Tensor, num_accepted: torch.Tensor) -> None:
        """Count a call of the target of speculative sampling, and its drafts (R,) each."""
        self.energy_calls[step.rows] += 1
        self.drafts[step.rows] += num_drafts.cpu()
        self.accepted_drafts[step.rows] += num_accepted.cpu()

    def keep_log_probs(
        self,
        rows: torch.Tensor,
        revealed: torch.Tensor,
        log_probs: torch.Tensor,
    ) -> None:
        """Keep log-probabilities (R, L) of the tokens of some `rows` (R,) at the positions `revealed` (R, L) bool."""
        # (R, L), the earlier ones elsewhere. In float64 where the network computes in it
        kept = torch.where(revealed, log_probs, self.state.log_probs[rows])
        self.state.log_probs = self.state.log_probs.to(kept.dtype).index_copy(0, rows, kept)

    def end_block(self, view: View, num_steps: int) -> None:
        """End a block that took `num_steps` steps. Steps that were left out changed nothing."""
        self.earlier_steps += num_steps
        if self.keeps_history:
            self.fill_history(self.earlier_steps)
        if self.keeps_log_probs:
            self.canvas.write_log_probs(view, self.state.log_probs)

    def fill_history(self, num_steps: int) -> None:
        """Repeat the latest sequences until there is an entry after each of `num_steps` steps."""
        missing = num_steps + 1 - len(self.history)
        self.history += [self.sequences] * missing

    def by_step(
        self,
        records: dict[int, torch.Tensor],
        missing: float = torch.nan,
    ) -> torch.Tensor | None:
        """Stack records to (steps, ...), with `missing` at steps that have none."""
        if not records:
            return None

        # (n, B, ...) of n steps, and the numbers (n,) of these
        kept = torch.stack(list(records.values()))
        numbers = torch.tensor(list(records), device=kept.device)

        shape = (self.earlier_steps, *kept.shape[1:])
        return kept.new_full(shape, missing).index_copy(0, numbers, kept)

    def output(self) -> EDLMGenerationOutput:
        num_generated = self.canvas.generated.sum(-1).cpu()
        return EDLMGenerationOutput(
            sequences=self.canvas.output(),
            energies=self.by_step(self.energies),
            effective_sample_size=self.by_step(self.sample_sizes),
            num_denoiser_calls=self.denoiser_calls,
            num_energy_calls=self.energy_calls,
            tokens_per_forward=num_generated.float() / self.denoiser_calls.clamp_min(1),
            history=tuple(self.history) if self.keeps_history else None,
            chosen=self.by_step(self.chosen, missing=-1),
            log_probs=self.canvas.output_log_probs() if self.keeps_log_probs else None,
            num_drafts=self.drafts,
            num_accepted_drafts=self.accepted_drafts,
        )
