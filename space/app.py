"""A Gradio Space: continue a text or fill its gaps, and look at every step with the energies of its candidates.

The model is the one that ships with edlm_hf, or the folder or Hub repository that EDLM_MODEL names.
"""

import html
import os

import gradio as gr
import torch

from edlm_hf.loading import load_with_tokenizer
from edlm_hf.visualization import generation_html

GAP = "_"
ABOUT = f"""# EDLM: energy-based diffusion language models

In each of T steps a masked diffusion model proposes k texts, an energy that sees each of them whole says how likely it
is to be taken, and a few tokens of the one that is taken stay. The energy acts in the first share w of the steps; with
k = 1 there is none.
In a text to fill, every `{GAP}` is one token. [Paper](https://arxiv.org/abs/2410.21357)
"""


def build(model, tokenizer) -> gr.Blocks:
    """The app for an EDLM model (or a denoiser alone) and its tokenizer."""
    limit = model.config.max_position_embeddings or 256

    def run(ids: list[int], steps: int, candidates: int, window: float, seed: int, **options) -> tuple[str, str]:
        """The text and its picture, for a frame that cannot reach the page around it."""
        try:
            out = model.generate(
                torch.tensor([ids], dtype=torch.long, device=model.device),
                max_denoising_steps=int(steps),
                num_candidates=int(candidates),
                energy_window=window,
                generator=torch.Generator(model.device).manual_seed(int(seed)),
                return_dict_in_generate=True,
                output_history=True,
                **options,
            )
        except ValueError as error:
            raise gr.Error(str(error)) from None
        picture = html.escape(generation_html(out, tokenizer, mask_token_id=model.config.mask_token_id))
        frame = '<iframe title="Steps of the generation" sandbox="allow-scripts" class="steps" srcdoc="{}"></iframe>'
        return tokenizer.decode(out.sequences[0], skip_special_tokens=True), frame.format(picture)

    def generate(prompt: str, length: int, *settings):
        return run(tokenizer(prompt).input_ids, *settings, max_length=int(length))

    def fill(text: str, *settings):
        ids = tokenizer(text.replace(GAP, tokenizer.mask_token)).input_ids
        if tokenizer.mask_token_id not in ids:
            raise gr.Error(f"There is nothing to fill. Put {GAP} where a token is missing.")
        return run(ids, *settings)

    with gr.Blocks(title="EDLM", analytics_enabled=False) as app:
        gr.Markdown(ABOUT)
        with gr.Row():
            settings = [
                gr.Slider(1, 256, value=16, step=1, label="T: steps"),
                gr.Slider(1, 16, value=8, step=1, label="k: candidates"),
                gr.Slider(0, 1, value=1, step=0.05, label="w: window"),
                gr.Slider(0, 9999, value=0, step=1, label="Seed"),
            ]
        with gr.Tab("Generate"):
            prompt = gr.Textbox("It was a dark and", label="Prompt (may be empty)")
            length = gr.Slider(1, limit, value=limit, step=1, label="Length in tokens, prompt included")
            start = gr.Button("Generate", variant="primary")
        with gr.Tab("Infill"):
            gaps = gr.Textbox(
                f"The old house stood at the end of{GAP * 3} and nobody lived in it.", label="Text with gaps"
            )
            start_fill = gr.Button("Fill", variant="primary")
        text = gr.Textbox(label="Text", lines=3, interactive=False)
        picture = gr.HTML(label="Steps")
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
        start.click(generate, [prompt, length, *settings], [text, picture], api_name="generate", **one_at_a_time)
        start_fill.click(fill, [gaps, *settings], [text, picture], api_name="fill", **one_at_a_time)
    return app


def load():
    """The model and its tokenizer, on a GPU if there is one."""
    name = os.environ.get("EDLM_MODEL") or "edlm-books"
    model, tokenizer = load_with_tokenizer(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


if __name__ == "__main__":
    build(*load()).launch(
        theme=gr.themes.Default(font="system-ui", font_mono="monospace"),  # no font from elsewhere
        css=".steps { width: 100%; height: 44rem; border: 0; }",
    )
