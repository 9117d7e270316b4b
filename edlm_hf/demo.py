"""`edlm demo`: learn a small denoiser from one public-domain book in a minute, then generate from it.

This stands in until a trained checkpoint ships with the package. It is the whole of masked diffusion in two functions.
"""

import time
from importlib.resources import files

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.masked_diffusion import token_log_probs
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.tokenization import text8_tokenizer

LENGTH, BATCH = 64, 32


def train(model: MDLMForMaskedLM, ids: torch.Tensor, seconds: float, generator: torch.Generator, console: Console):
    """Minimise the continuous-time bound E (1/t) sum over masked i of -log p(x_i | x_t) for some seconds.

    Args:
        ids: (N,) the tokens of the text; rows are random windows of it.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    mask, start = model.config.mask_token_id, time.monotonic()
    bar = Progress(TextColumn("learning {task.fields[loss]}"), BarColumn(), TimeElapsedColumn(), console=console)
    with bar as progress:
        task = progress.add_task("", total=seconds, loss="")
        while (elapsed := time.monotonic() - start) < seconds:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, 20 * elapsed / seconds, 2 * (1 - elapsed / seconds) + 0.05)
            begins = torch.randint(len(ids) - LENGTH, (BATCH, 1), generator=generator)
            clean = ids[begins + torch.arange(LENGTH)]
            t = (torch.rand((), generator=generator) + torch.arange(BATCH)).div(BATCH).clamp_min(1e-3)[:, None]
            noisy = clean.masked_fill(torch.rand(clean.shape, generator=generator) < t, mask)
            log_probs = token_log_probs(model(noisy).logits, mask).gather(-1, clean.unsqueeze(-1)).squeeze(-1)
            loss = (-log_probs * (noisy == mask) / t).sum(-1).mean() / LENGTH
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.update(task, completed=elapsed, loss=f"{loss.item() / 0.6931:.2f} bits/char")


def run(seconds: float = 60, samples: int = 4, steps: int = 64, seed: int = 0) -> None:
    """Train for `seconds`, generate `samples` rows in `steps` steps and print them with what they cost."""
    console, generator = Console(), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tokenizer = text8_tokenizer(LENGTH, start_token=False)
    text = files("edlm_hf").joinpath("assets/a_study_in_scarlet.txt").read_text().strip()
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(text)))
    config = MDLMConfig(
        vocab_size=len(tokenizer), hidden_dim=128, cond_dim=32, n_blocks=4, n_heads=4, model_length=LENGTH, dropout=0.0
    )
    denoiser = MDLMForMaskedLM(config)
    console.print(f"{denoiser.num_parameters():,} parameters, {len(ids):,} characters of 'A Study in Scarlet' (1887)")
    train(denoiser, ids, seconds, generator, console)

    model = EDLMForMaskedDiffusion.from_components(denoiser, tokenizer=tokenizer)
    began = time.monotonic()
    rows = model.generate(batch_size=samples, max_denoising_steps=steps, generator=generator)
    elapsed = time.monotonic() - began
    for row in tokenizer.batch_decode(rows):
        console.print(f"[green]{row}[/green]")
    console.print(
        f"{samples} x {LENGTH} characters in {elapsed:.2f} s, {steps} steps, plain masked diffusion (no energy)"
    )
