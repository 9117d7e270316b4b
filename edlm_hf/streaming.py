"""Streamers for `generate()` that show a text while it forms, in a notebook or in a terminal.

They have the methods of transformers' `TextDiffusionStreamer`: `put` for finished tokens, `put_draft`
for the rest of the text as it stands after a step, and `end`. The whole text is decoded anew each time,
masks as a light symbol.
"""

import html
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from queue import SimpleQueue

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from edlm_hf.terminal import visible


class DiffusionStreamer(BaseStreamer):
    """Collects the tokens of one text; a subclass shows them.

    Args:
        mask_symbol: shown in place of a mask.
        mask_token_id: the mask token, for tokenizers that have none.
        skip_prompt: leave the prompt out.
        skip_special_tokens: leave other special tokens out.

    Raises:
        ValueError: more than one row is streamed, or no mask token is known.
    """

    _takes_logits = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_symbol: str = "░",
        mask_token_id: int | None = None,
        skip_prompt: bool = False,
        skip_special_tokens: bool = True,
    ):
        self.tokenizer = tokenizer
        self.mask_symbol = mask_symbol
        self.skip_prompt = skip_prompt

        self.mask_token_id = tokenizer.mask_token_id if mask_token_id is None else mask_token_id
        if self.mask_token_id is None:
            raise ValueError("The tokenizer has no mask token. Pass mask_token_id=..., the one of the model.")
        self.mask_token = tokenizer.convert_ids_to_tokens(self.mask_token_id)

        self.skipped = set()
        if skip_special_tokens:
            self.skipped = set(tokenizer.all_special_ids) - {self.mask_token_id}

        self.finished: list[int] = []
        self.next_is_prompt = True

    def put(self, value: torch.LongTensor) -> None:
        """Add finished tokens (N,) or (1, N), the prompt first. They end the draft."""
        tokens = one_row(value)
        if not (self.next_is_prompt and self.skip_prompt):
            self.finished += tokens
        self.next_is_prompt = False

        self.show(visible(self.decode(self.finished)), "")

    def put_draft(self, value: torch.LongTensor, **kwargs) -> None:
        """Replace the draft, the tokens after the finished ones as they stand now: (N,) or (1, N)."""
        finished = self.decode(self.finished)
        whole = self.decode(self.finished + one_row(value))

        # Decoding may join tokens across the border. Then all of it is draft.
        border = len(finished) if whole.startswith(finished) else 0
        self.show(visible(whole[:border]), visible(whole[border:]))

    def end(self) -> None:
        """Show the finished text for the last time. The next tokens begin another text."""
        self.close(self.decode(self.finished))
        self.finished = []
        self.next_is_prompt = True

    def stop(self) -> None:
        """Forget a text that was interrupted: `generate()` failed, and the next tokens begin another text."""
        self.finished = []
        self.next_is_prompt = True

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, a symbol for every mask."""
        kept = [token for token in tokens if token not in self.skipped]
        if self.mask_token is not None:
            return self.tokenizer.decode(kept).replace(self.mask_token, self.mask_symbol)

        # The tokenizer has no mask token, as gpt2's for mdlm-owt: decode the tokens between masks
        text = ""
        for is_mask, group in groupby(kept, key=lambda token: token == self.mask_token_id):
            group = list(group)
            text += self.mask_symbol * len(group) if is_mask else self.tokenizer.decode(group)
        return text

    def show(self, finished: str, draft: str) -> None:
        """Show the text as it stands, in which control characters are symbols."""
        raise NotImplementedError

    def close(self, text: str) -> None:
        """Show the finished text for the last time. Here control characters are still themselves."""
        raise NotImplementedError


class NotebookDiffusionStreamer(DiffusionStreamer):
    """Shows the text in one output of a notebook cell, updated in place, drafts in a lighter colour.

    Args: as for `DiffusionStreamer`.

    Raises:
        ImportError: IPython is not installed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        try:
            from IPython.display import display
        except ImportError as error:
            raise ImportError(
                "NotebookDiffusionStreamer needs IPython, which every Jupyter kernel brings. Run this in a notebook, "
                "pip install ipython, or use TerminalDiffusionStreamer."
            ) from error
        self.display = display
        self.handle = None  # of the output that is updated, None before the first

    def show(self, finished: str, draft: str) -> None:
        lighter = ""
        if draft:
            lighter = f'<span style="opacity: 0.6">{html.escape(draft)}</span>'
        data = {
            "text/plain": finished + draft,
            "text/html": f'<div style="white-space: pre-wrap">{html.escape(finished)}{lighter}</div>',
        }

        if self.handle is None:
            self.handle = self.display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)

    def close(self, text: str) -> None:
        self.show(visible(text), "")
        self.handle = None

    def stop(self) -> None:
        super().stop()
        self.handle = None


class TerminalDiffusionStreamer(DiffusionStreamer):
    """Shows the text at the end of a terminal, drafts in yellow, also where they are longer than a line.

    Where the output is not a terminal only the finished text appears.

    Args: as for `DiffusionStreamer`, and
        console: where to show it, the standard output unless given.
        keep: leave the finished text there. Otherwise nothing is left, and the caller may print it.
    """

    def __init__(self, *args, console: Console | None = None, keep: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.console = console or Console()
        self.keep = keep
        self.live = None  # the part of the screen that is updated, None before the first draft

    def show(self, finished: str, draft: str) -> None:
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()

        self.live.update(Text.assemble(finished, (draft, "yellow")), refresh=True)

    def release(self) -> None:
        """Give the terminal back, with its cursor."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def stop(self) -> None:
        super().stop()
        self.release()

    def close(self, text: str) -> None:
        self.release()
        if self.keep:
            shown = visible(text) if self.console.is_terminal else text
            print(shown, file=self.console.file, flush=True)


class StreamedCall(DiffusionStreamer):
    """A call of `generate()` in a thread of its own, whose text is read while it forms.

    ```python
    call = StreamedCall(partial(model.generate, ids, max_new_tokens=64), tokenizer)
    for finished, draft in call:
        ...
    sequences = call.result()
    ```

    Args:
        generate: called with `streamer=`. A function that accepts it and hands it on will do.
        args: of `DiffusionStreamer`.
        options: of `DiffusionStreamer`.
    """

    def __init__(self, generate: Callable, *args, **options):
        super().__init__(*args, **options)
        self.generate = generate
        self.drafts = SimpleQueue()
        self.future = None  # of the call, None before it began

    def show(self, finished: str, draft: str) -> None:
        self.drafts.put((finished, draft))

    def close(self, text: str) -> None:
        self.show(visible(text), "")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Begin the call, and yield the text as it stands after every step: finished part and draft.

        Raises:
            Exception: whatever `generate()` raises. A reader that leaves early waits for its end.
        """
        # What an earlier call has left is not of this one
        self.stop()
        self.drafts = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            self.future = pool.submit(self.generate, streamer=self)
            self.future.add_done_callback(lambda _: self.drafts.put(None))
            yield from iter(self.drafts.get, None)
        self.future.result()

    def result(self):
        """What `generate()` returned, after the text was read to its end.

        Raises:
            ValueError: nobody has begun to read the text.
        """
        if self.future is None:
            raise ValueError("The call has not begun: read its text first, as in `for finished, draft in call`.")
        return self.future.result()


class StepStreamer(BaseStreamer):
    """Counts steps, whatever the number of texts and of calls, and shows nothing.

    Args:
        on_step: called with the number of steps so far.
    """

    def __init__(self, on_step: Callable[[int], None]):
        self.on_step = on_step
        self.earlier_steps = 0  # of the calls that have ended
        self.steps = 0  # of the present call

    def put(self, value: torch.LongTensor) -> None:
        pass

    def put_step(self, steps: int) -> None:
        """Note the number of steps of the present call that are done."""
        self.steps = steps
        self.on_step(self.earlier_steps + steps)

    def end(self) -> None:
        self.earlier_steps += self.steps
        self.steps = 0


def diffusion_streamer(tokenizer: PreTrainedTokenizerBase, **options) -> DiffusionStreamer:
    """A notebook streamer inside a Jupyter kernel, else a terminal streamer.

    Args:
        options: of `DiffusionStreamer`.
    """
    streamer_class = NotebookDiffusionStreamer if in_notebook() else TerminalDiffusionStreamer
    return streamer_class(tokenizer, **options)


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel. An IPython shell in a terminal is not one."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None


def one_row(value: torch.LongTensor) -> list[int]:
    """The tokens of one text, (N,) or (1, N).

    Raises:
        ValueError: there are several rows.
    """
    if value.dim() > 1 and len(value) != 1:
        raise ValueError(f"A streamer shows one text, but {len(value)} rows were streamed. Generate one at a time.")
    return value.flatten().tolist()
