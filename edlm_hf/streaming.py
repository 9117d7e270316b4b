"""Streamers for `generate()` that show a text while it forms, in a notebook or in a terminal.

They take what transformers' `TextDiffusionStreamer` takes: `put` finished tokens, `put_draft` the rest of the text as
it stands after a step, `end`. The whole is decoded anew each time, masks as a light symbol.
"""

import html
import sys
from collections.abc import Callable
from itertools import groupby

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
        mask_symbol: what stands for a mask.
        mask_token_id: the mask token, where the tokenizer does not say it.
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
        self.tokenizer, self.mask_symbol, self.skip_prompt = tokenizer, mask_symbol, skip_prompt
        self.mask_token_id = tokenizer.mask_token_id if mask_token_id is None else mask_token_id
        if self.mask_token_id is None:
            raise ValueError("The tokenizer has no mask token. Pass mask_token_id=..., the one of the model.")
        self.mask_token = tokenizer.convert_ids_to_tokens(self.mask_token_id)
        self.skipped = set(tokenizer.all_special_ids) - {self.mask_token_id} if skip_special_tokens else set()
        self.finished: list[int] = []
        self.next_is_prompt = True

    def put(self, value: torch.LongTensor) -> None:
        """Finished tokens (N,) or (1, N), the prompt first; they end the draft."""
        tokens = row_of(value)
        if not (self.next_is_prompt and self.skip_prompt):
            self.finished += tokens
        self.next_is_prompt = False
        self.show(visible(self.decode(self.finished)), "")

    def put_draft(self, value: torch.LongTensor, **kwargs) -> None:
        """What is to follow the finished tokens, as it stands now: (N,) or (1, N); it replaces the last draft."""
        finished = self.decode(self.finished)
        whole = self.decode(self.finished + row_of(value))
        shared = len(finished) if whole.startswith(finished) else 0  # decoding may join tokens across the border
        self.show(visible(whole[:shared]), visible(whole[shared:]))

    def end(self) -> None:
        self.close(self.decode(self.finished))
        self.finished, self.next_is_prompt = [], True

    def decode(self, tokens: list[int]) -> str:
        kept = [token for token in tokens if token not in self.skipped]
        if self.mask_token is not None:
            return self.tokenizer.decode(kept).replace(self.mask_token, self.mask_symbol)
        # The tokenizer has no such token, as gpt2's has none for mdlm-owt.
        runs = ((masked, list(run)) for masked, run in groupby(kept, self.mask_token_id.__eq__))
        return "".join(self.mask_symbol * len(run) if masked else self.tokenizer.decode(run) for masked, run in runs)

    def show(self, finished: str, draft: str) -> None:
        """Show the text as it stands, in which control characters are symbols."""
        raise NotImplementedError

    def close(self, text: str) -> None:
        """Show the finished text, given as it is, for the last time."""
        raise NotImplementedError


class NotebookDiffusionStreamer(DiffusionStreamer):
    """Shows the text in one output of a notebook cell, updated in place; drafts are lighter.

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
        self.display, self.handle = display, None

    def show(self, finished: str, draft: str) -> None:
        lighter = f'<span style="opacity: 0.6">{html.escape(draft)}</span>' if draft else ""
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


class TerminalDiffusionStreamer(DiffusionStreamer):
    """Shows the text at the end of a terminal, drafts in yellow, also where they are longer than a line.

    Where the output is not a terminal only the finished text appears.

    Args: as for `DiffusionStreamer`, and
        console: where to show it (the standard output).
        keep: leave the finished text there; without it the caller prints what it wants.
    """

    def __init__(self, *args, console: Console | None = None, keep: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.console, self.keep, self.live = console or Console(), keep, None

    def show(self, finished: str, draft: str) -> None:
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        self.live.update(Text.assemble(finished, (draft, "yellow")), refresh=True)

    def close(self, text: str) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.keep:
            print(visible(text) if self.console.is_terminal else text, file=self.console.file, flush=True)


class StepStreamer(BaseStreamer):
    """Shows nothing but tells `tell` how many steps there were so far, whatever the number of texts and of calls."""

    def __init__(self, tell: Callable[[int], None]):
        self.tell, self.before, self.steps = tell, 0, 0

    def put(self, value: torch.LongTensor) -> None:
        pass

    def put_step(self, steps: int) -> None:
        """So many steps of the present call are done."""
        self.steps = steps
        self.tell(self.before + steps)

    def end(self) -> None:
        self.before, self.steps = self.before + self.steps, 0


def diffusion_streamer(tokenizer: PreTrainedTokenizerBase, **options) -> DiffusionStreamer:
    """The streamer for where this runs: the notebook one inside a Jupyter kernel, else the terminal one.

    Args:
        options: those of `DiffusionStreamer`.
    """
    return (NotebookDiffusionStreamer if in_notebook() else TerminalDiffusionStreamer)(tokenizer, **options)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code (an IPython shell in a terminal is none)."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def row_of(value: torch.LongTensor) -> list[int]:
    if value.dim() > 1 and len(value) != 1:
        raise ValueError(f"A streamer shows one text, but {len(value)} rows were streamed. Generate one at a time.")
    return value.flatten().tolist()
