"""What `generate()` shows while it runs and returns when it is done: steps, drafts, and a record of both."""

from collections.abc import Callable

import torch
from transformers.utils import logging

from .canvas_edlm import Canvas, View
from .generation_arguments import check_records
from .generation_config_edlm import EDLMGenerationConfig, EDLMGenerationOutput
from .masked_diffusion import effective_sample_size
from .samplers import State, Step

# With more steps in a block than this only those are shown that reveal something.
MOST_SHOWN_STEPS = 2**14


class Show:
    """Shows the first row to a streamer, and the steps of every block to it, to a callback and in a progress bar."""

    def __init__(self, streamer, canvas: Canvas, progress_bar: bool, model=None, callback: Callable | None = None):
        self.streamer, self.canvas, self.progress_bar = streamer, canvas, progress_bar
        self.model, self.callback = model, callback
        self.has_row = streamer is not None and len(canvas.ids) > 0
        self.before = 0  # steps of earlier blocks
        self.told = 0  # tokens of the row that the streamer has got
        if self.has_row:
            self.put_finished()  # the prompt

    def begin_block(self, view: View, num_steps: int) -> None:
        self.view, self.num_steps, self.done = view, num_steps, 0
        self.fills_row = self.has_row and bool(view.free[0].any())
        self.bar = logging.tqdm(total=num_steps, desc="denoising", disable=not self.progress_bar)
        self.latest = self.canvas.read(view)

    def step(self, step: Step, state: State) -> None:
        """A step of the block is done. Those that were left out before it changed nothing."""
        self.rest(step.index)
        self.latest = state.ids
        self.rest(step.index + 1)
        if self.callback is not None:
            self.callback(self.model, self.before + step.index, step.t.clone(), {"ids": state.ids.clone()})

    def rest(self, done: int) -> None:
        """`done` steps of the block are done, and nothing has changed since the last one that was shown."""
        shown = range(self.done + 1, done + 1)
        for number in shown if self.num_steps <= MOST_SHOWN_STEPS else shown[-1:]:
            if self.fills_row and hasattr(self.streamer, "put_draft"):
                self.streamer.put_draft(self.canvas.draft(self.view, self.latest).cpu())
            if hasattr(self.streamer, "put_step"):
                self.streamer.put_step(self.before + number)
        self.bar.update(done - self.done)
        self.done = max(done, self.done)

    def end_block(self, steps: int) -> None:
        """The block took so many steps."""
        self.bar.close()
        self.before += steps
        if self.fills_row:
            self.put_finished()

    def put_finished(self) -> None:
        """Give the streamer what is finished of the row and new to it."""
        finished = int(self.canvas.finished_lengths[0])
        self.streamer.put(self.canvas.ids[0, self.told : finished].cpu())
        self.told = finished

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()


class Records:
    """What `generate(return_dict_in_generate=True)` returns besides the tokens, one entry per step where it says so.

    Args:
        canvas: the rows. config: says what is kept.
        weighs: whether an energy acts. steps: how many steps there are at most.
    """

    def __init__(self, canvas: Canvas, config: EDLMGenerationConfig, weighs: bool, steps: int):
        """Raise ValueError if the entries that are asked for would not fit into memory."""
        self.canvas, self.config = canvas, config
        self.batch = len(canvas.ids)
        self.steps = 0  # of the blocks before the present one
        self.denoiser_calls = torch.zeros(self.batch, dtype=torch.long, device="cpu")
        self.energy_calls = torch.zeros(self.batch, dtype=torch.long, device="cpu")

        # Step -> (B, ...) of what was recorded there
        self.energies: dict[int, torch.Tensor] = {}
        self.sample_sizes: dict[int, torch.Tensor] = {}
        self.chosen: dict[int, torch.Tensor] = {}

        keeps = bool(config.return_dict_in_generate)
        self.keeps_history = bool(keeps and config.output_history)
        self.keeps_log_probs = bool(keeps and config.output_log_probs)
        self.latest = canvas.output()
        self.history = [self.latest]
        if keeps:
            check_records(steps, self.batch * config.num_candidates if weighs else int(self.keeps_history))

    def begin_block(self, state: State) -> None:
        """The canvas as it is now is what the steps of a block before the first that reveals something leave."""
        if self.keeps_history:
            self.latest = self.canvas.output()
        if self.keeps_log_probs:
            state.log_probs = torch.full(state.ids.shape, torch.nan, device=state.ids.device)
        self.state = state

    def step(self, step: Step, view: View) -> None:
        """Count the calls of a step, and keep the canvas after it."""
        self.denoiser_calls[step.rows] += 1
        if self.keeps_history:
            self.repeat_latest(self.steps + step.index)
            self.canvas.write(view, self.state.ids)
            self.latest = self.canvas.output()
            self.history.append(self.latest)

    def weighed(self, step: Step, energies: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> None:
        """Keep the energies (R, k) of the rows of a step, their weights, and which candidates (R,) were taken."""
        self.energy_calls[step.rows] += 1
        number, rows = self.steps + step.index, step.rows.to(energies.device)
        nan = energies.new_full((self.batch, energies.shape[1]), torch.nan)
        sizes = effective_sample_size(weights).to(energies.dtype)
        none_taken = chosen.new_full((self.batch,), -1)
        self.energies[number] = nan.index_copy(0, rows, energies)
        self.sample_sizes[number] = nan[:, 0].index_copy(0, rows, sizes)
        self.chosen[number] = none_taken.index_copy(0, rows, chosen)

    def drawn(self, rows: torch.Tensor, revealed: torch.Tensor, log_probs: torch.Tensor) -> None:
        """Keep log p_theta (n,) or (n, 1) of the tokens at the n positions `revealed` (R, L) bool of `rows` (R,)."""
        if self.keeps_log_probs:
            kept = self.state.log_probs[rows].masked_scatter(revealed, log_probs.float().flatten())
            self.state.log_probs = self.state.log_probs.index_copy(0, rows, kept)

    def end_block(self, view: View, steps: int) -> None:
        """The block took so many steps. Nothing changed in those of them that were left out."""
        self.steps += steps
        if self.keeps_history:
            self.repeat_latest(self.steps)
        if self.keeps_log_probs:
            self.canvas.write_log_probs(view, self.state.log_probs)

    def repeat_latest(self, steps: int) -> None:
        """Fill up the history to the sequences before the first step and after each of `steps`."""
        self.history += [self.latest] * (steps + 1 - len(self.history))

    def stacked(self, records: dict[int, torch.Tensor], missing: float = torch.nan) -> torch.Tensor | None:
        """(steps, ...) of what was recorded, `missing` at the steps in between."""
        if not records:
            return None
        kept = torch.stack(list(records.values()))
        numbers = torch.tensor(list(records), device=kept.device)
        return kept.new_full((self.steps, *kept.shape[1:]), missing).index_copy(0, numbers, kept)

    def output(self) -> EDLMGenerationOutput:
        return EDLMGenerationOutput(
            sequences=self.canvas.output(),
            energies=self.stacked(self.energies),
            effective_sample_size=self.stacked(self.sample_sizes),
            num_denoiser_calls=self.denoiser_calls,
            num_energy_calls=self.energy_calls,
            tokens_per_forward=self.canvas.generated.sum(-1).cpu() / self.denoiser_calls.clamp_min(1),
            history=tuple(self.history) if self.keeps_history else None,
            chosen=self.stacked(self.chosen, missing=-1),
            log_probs=self.canvas.output_log_probs() if self.keeps_log_probs else None,
        )
