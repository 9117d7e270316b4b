"""What `generate()` shows while it runs and returns when it is done: steps, drafts, and a record of both."""

import torch
from transformers.utils import logging

from .canvas_edlm import Canvas, View
from .denoising_edlm import Run
from .generation_arguments import check_records
from .generation_config_edlm import EDLMGenerationOutput

# With more steps in a block than this only those are shown that reveal something.
MOST_SHOWN_STEPS = 2**14


class Show:
    """Shows the first row to a streamer, and the steps of every block to it and in a progress bar."""

    def __init__(self, streamer, canvas: Canvas, progress_bar: bool):
        self.streamer, self.canvas, self.progress_bar = streamer, canvas, progress_bar
        self.has_row = streamer is not None and len(canvas.ids) > 0
        self.before = 0  # steps of earlier blocks
        self.told = 0  # tokens of the row that the streamer has got
        if self.has_row:
            self.put_finished()  # the prompt

    def begin_block(self, view: View, num_steps: int) -> None:
        self.view, self.num_steps, self.done = view, num_steps, 0
        self.fills_row = self.has_row and bool(view.free[0].any())
        self.bar = logging.tqdm(total=num_steps, desc="denoising", disable=not self.progress_bar)

    def steps(self, done: int, ids: torch.LongTensor) -> None:
        """`done` steps of the block are done, and the `ids` (B, W) of its view are what the last one left."""
        shown = range(self.done + 1, done + 1)
        for number in shown if self.num_steps <= MOST_SHOWN_STEPS else shown[-1:]:
            if self.fills_row and hasattr(self.streamer, "put_draft"):
                self.streamer.put_draft(self.canvas.draft(self.view, ids).cpu())
            if hasattr(self.streamer, "put_step"):
                self.streamer.put_step(self.before + number)
        self.bar.update(done - self.done)
        self.done = done

    def end_block(self) -> None:
        self.bar.close()
        self.before += self.num_steps
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
    """What `generate(return_dict_in_generate=True)` returns besides the tokens, one entry per step where it says so."""

    def __init__(self, canvas: Canvas, run: Run):
        """Raise ValueError if the entries that are asked for would not fit into memory."""
        config = run.config
        self.canvas, self.run = canvas, run
        self.latest = canvas.output()
        self.history = [self.latest]
        self.keeps_history = bool(config.return_dict_in_generate and config.output_history)
        if not config.return_dict_in_generate:
            return

        steps = canvas.num_blocks(config.block_length) * config.max_denoising_steps
        if config.sampler == "first_hitting":
            steps = canvas.ids.shape[1]
        weighs = run.energy is not None and config.do_sample is not False and run.window[0] <= run.window[1]
        check_records(steps, run.batch * config.num_candidates if weighs else int(self.keeps_history))

    def begin_block(self) -> None:
        """The canvas as it is now is what the steps of a block before the first that reveals something leave."""
        if self.keeps_history:
            self.latest = self.canvas.output()

    def keep(self, index: int) -> None:
        """Add the canvas as it is after step `index` of the block. It did not change in the steps before that."""
        self.repeat_latest(self.run.steps + index)
        self.latest = self.canvas.output()
        self.history.append(self.latest)

    def end_block(self) -> None:
        """Nothing changed in the steps of the block that are left."""
        if self.keeps_history:
            self.repeat_latest(self.run.steps)

    def repeat_latest(self, steps: int) -> None:
        """Fill up the history to the sequences before the first step and after each of `steps`."""
        self.history += [self.latest] * (steps + 1 - len(self.history))

    def output(self) -> EDLMGenerationOutput:
        run = self.run
        return EDLMGenerationOutput(
            sequences=self.canvas.output(),
            energies=run.stacked(run.energies),
            effective_sample_size=run.stacked(run.sample_sizes),
            num_denoiser_calls=run.denoiser_calls,
            num_energy_calls=run.energy_calls,
            tokens_per_forward=self.canvas.generated.sum(-1).cpu() / run.denoiser_calls.clamp_min(1),
            history=tuple(self.history) if self.keeps_history else None,
            chosen=run.stacked(run.chosen, missing=-1),
        )


__all__ = ["Records", "Show"]
