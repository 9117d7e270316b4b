"""A Gradio Space: continue a text or fill its gaps, watch it form, and look at every step afterwards.

The model is the one that ships with edlm_hf, or the folder or Hub repository that EDLM_MODEL names.
"""

import html
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps

import gradio as gr
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from edlm_hf.loading import load_with_tokenizer
from edlm_hf.streaming import StreamedCall
from edlm_hf.visualization import generation_html

GAP = "_"
ABOUT = f"""# EDLM: energy-based diffusion language models

In each of T steps a masked diffusion model proposes k texts, an energy that sees each of them whole says how likely it
is to be taken, and a few tokens of the one that is taken stay. A planner chooses which: `spaced` takes tokens far from
each other, `ancestral` any. The energy acts in the first share w of the steps; with k = 1 there is none.
In a text to fill, every `{GAP}` is one token. [Paper](https://arxiv.org/abs/2410.21357)
"""

PROMPTS = ["It was a dark and", '"My dear Watson," said', "CHAPTER I\n\nThe sea was", "He opened the door, and"]
TEXTS_WITH_GAPS = [
    f"The old house stood at the end of{GAP * 3} and nobody lived in it.",
    f'"I am very glad to{GAP * 2}you," said the young{GAP}, and she gave him her{GAP}.',
    f"In the{GAP}of the year 1866 a ship of two{GAP}tons left the{GAP}of Liverpool.",
]

# How to sample, as `Compare` shows them side by side: title, sampler, whether candidates are weighed
WAYS = (("ancestral", "ancestral", False), ("planned", "spaced", False), ("planned, with energy", "spaced", True))
COLUMNS = ["", "text", "calls of the denoiser", "calls of the energy", "seconds"]
WIDTHS = ["12%", "58%", "10%", "10%", "10%"]

# The picture of a generation, which cannot reach the page around it
FRAME = '<iframe title="Steps of the generation" sandbox="allow-scripts" class="steps" srcdoc="{}"></iframe>'

# The model runs for one visitor at a time
ALONE = {"concurrency_limit": 1, "concurrency_id": "model"}


@dataclass(frozen=True)
class Studio:
    """A model and its tokenizer. What a button does is a method, which yields what is shown while the text forms."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def generate(self, prompt: str, length: int, *settings) -> Iterator[tuple[str, str]]:
        """Continue a prompt to `length` tokens."""
        return self.show(self.tokenizer(prompt).input_ids, *settings, max_length=int(length))

    def fill(self, text: str, *settings) -> Iterator[tuple[str, str]]:
        """Fill the gaps of a text."""
        ids = self.tokenizer(text.replace(GAP, self.tokenizer.mask_token)).input_ids
        if self.tokenizer.mask_token_id not in ids:
            raise gr.Error(f"There is nothing to fill. Put {GAP} where a token is missing.")
        return self.show(ids, *settings)

    def show(self, ids: list[int], *settings, **options) -> Iterator[tuple[str, str]]:
        """Yield the text as it stands, and at the end with the picture of its steps."""
        call = self.call(ids, *settings, output_history=True, **options)
        for finished, draft in call:
            yield finished + draft, ""

        out = call.result()
        page = html.escape(generation_html(out, self.tokenizer, mask_token_id=self.model.config.mask_token_id))
        yield self.text_of(out), FRAME.format(page)

    def compare(
        self, prompt: str, length: int, steps: int, candidates: int, window: float, seed: int
    ) -> Iterator[list[list]]:
        """Yield a table that grows by one row for each of `WAYS`."""
        ids = self.tokenizer(prompt).input_ids
        rows = []
        for title, sampler, weighed in WAYS:
            started = time.perf_counter()
            settings = (sampler, steps, candidates if weighed else 1, window, seed)
            call = self.call(ids, *settings, max_length=int(length))
            for finished, draft in call:
                yield [*rows, [title, finished + draft, "", "", ""]]

            out = call.result()
            calls = [int(out.num_denoiser_calls[0]), int(out.num_energy_calls[0])]
            rows.append([title, self.text_of(out), *calls, f"{time.perf_counter() - started:.2f}"])
            yield rows

    def call(
        self, ids: list[int], sampler: str, steps: int, candidates: int, window: float, seed: int, **options
    ) -> StreamedCall:
        """Begin to generate from token ids."""
        generate = partial(
            self.model.generate,
            torch.tensor([ids], dtype=torch.long, device=self.model.device),
            sampler=sampler,
            max_denoising_steps=int(steps),
            num_candidates=int(candidates),
            energy_window=window,
            generator=torch.Generator(self.model.device).manual_seed(int(seed)),
            return_dict_in_generate=True,
            **options,
        )
        return StreamedCall(generate, self.tokenizer, mask_token_id=self.model.config.mask_token_id)

    def text_of(self, out: ModelOutput) -> str:
        return self.tokenizer.decode(out.sequences[0], skip_special_tokens=True)


def shown_errors(method: Callable) -> Callable:
    """The same method, whose ValueErrors are shown to the visitor."""

    @wraps(method)
    def handler(*inputs):
        try:
            yield from method(*inputs)
        except ValueError as error:
            raise gr.Error(str(error)) from None

    return handler


def build(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> gr.Blocks:
    """The app for an EDLM model (or a denoiser alone) and its tokenizer."""
    studio = Studio(model, tokenizer)
    longest = model.config.max_position_embeddings or 256

    with gr.Blocks(title="EDLM", analytics_enabled=False) as app:
        gr.Markdown(ABOUT)
        with gr.Row():
            sampler = gr.Dropdown(["spaced", "ancestral"], value="spaced", label="Planner")
            settings = [
                gr.Slider(1, 256, value=16, step=1, label="T: steps"),
                gr.Slider(1, 16, value=8, step=1, label="k: candidates"),
                gr.Slider(0, 1, value=1, step=0.05, label="w: window"),
                gr.Slider(0, 9999, value=0, step=1, label="Seed"),
            ]

        with gr.Tab("Generate"):
            prompt = gr.Textbox(PROMPTS[0], label="Prompt (may be empty)")
            gr.Examples(PROMPTS, prompt, label="Prompts")
            length = gr.Slider(1, longest, value=longest, step=1, label="Length in tokens, prompt included")
            start = gr.Button("Generate", variant="primary")
            shown = [gr.Textbox(label="Text", lines=3, interactive=False), gr.HTML(label="Steps")]
            inputs = [prompt, length, sampler, *settings]
            start.click(shown_errors(studio.generate), inputs, shown, api_name="generate", **ALONE)

        with gr.Tab("Infill"):
            gaps = gr.Textbox(TEXTS_WITH_GAPS[0], label="Text with gaps")
            gr.Examples(TEXTS_WITH_GAPS, gaps, label="Texts")
            start = gr.Button("Fill", variant="primary")
            shown = [gr.Textbox(label="Filled text", lines=3, interactive=False), gr.HTML(label="Steps")]
            start.click(shown_errors(studio.fill), [gaps, sampler, *settings], shown, api_name="fill", **ALONE)

        with gr.Tab("Compare"):
            gr.Markdown("One prompt and one seed, without a planner, with one, and with an energy beside it.")
            prompt = gr.Textbox(PROMPTS[0], label="Prompt to compare (may be empty)")
            length = gr.Slider(1, longest, value=min(64, longest), step=1, label="Length in tokens, prompt included")
            start = gr.Button("Compare", variant="primary")
            table = gr.Dataframe(headers=COLUMNS, wrap=True, interactive=False, column_widths=WIDTHS)
            start.click(shown_errors(studio.compare), [prompt, length, *settings], table, api_name="compare", **ALONE)
    return app


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, on a GPU if there is one."""
    name = os.environ.get("EDLM_MODEL") or "edlm-books"
    model, tokenizer = load_with_tokenizer(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


if __name__ == "__main__":
    build(*load()).launch(
        theme=gr.themes.Default(font="system-ui", font_mono="monospace"),  # no font from elsewhere
        css=".steps { width: 100%; height: 44rem; border: 0; }",
    )
