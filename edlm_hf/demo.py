"""`edlm demo`: learn a small denoiser and a small autoregressive model from one public-domain book, in a minute, and
generate with the one as the proposal and the other as the energy (EDLM-AR).

This stands in until a trained checkpoint ships with the package.
"""

import time
from collections.abc import Callable
from importlib.resources import files

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel

from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.masked_diffusion import token_log_probs
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.tokenization import text8_tokenizer

LENGTH, BATCH = 64, 32


def diffusion_bound(model: MDLMForMaskedLM, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The continuous-time bound E (1/t) sum over masked i of -log p(x_i | x_t), in nats per token.

    Args:
        clean: (B, L) tokens; row i gets its time from the i-th of B equal parts of [0, 1].
    """
    batch, length = clean.shape
    t = ((torch.rand((), generator=generator) + torch.arange(batch)) / batch).clamp_min(1e-3)[:, None]
    noisy = clean.masked_fill(torch.rand(clean.shape, generator=generator) < t, model.config.mask_token_id)
    log_probs = token_log_probs(model(noisy).logits, model.config.mask_token_id)
    losses = -log_probs.gather(-1, clean.unsqueeze(-1)).squeeze(-1) * (noisy == model.config.mask_token_id)
    return (losses / t).sum(-1).mean() / length


def next_token_loss(model: MDLMForCausalLM, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy of every token given a start token and the tokens before it, in nats per token."""
    started = torch.nn.functional.pad(clean[:, :-1], (1, 0), value=model.config.bos_token_id)
    return torch.nn.functional.cross_entropy(model(started).logits.flatten(0, 1), clean.flatten())


def train(model: PreTrainedModel, loss_of: Callable, ids: torch.Tensor, seconds: float, generator, console: Console):
    """Minimise a loss on random windows of the text `ids` (N,) for some seconds."""
    optimizer, start = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0), time.monotonic()
    columns = TextColumn("{task.description} {task.fields[loss]}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(type(model).__name__, total=seconds, loss="")
        while (elapsed := time.monotonic() - start) < seconds:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, 20 * elapsed / seconds, 2 * (1 - elapsed / seconds) + 0.05)
            begins = torch.randint(len(ids) - LENGTH, (BATCH, 1), generator=generator)
            loss = loss_of(model, ids[begins + torch.arange(LENGTH)], generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.update(task, completed=elapsed, loss=f"{loss.item() / 0.6931:.2f} bits/char")


def run(seconds: float = 60, samples: int = 4, steps: int = 32, seed: int = 0) -> None:
    """Train for `seconds`, generate `samples` rows in `steps` steps and print them with what they cost."""
    console, generator = Console(), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tokenizer = text8_tokenizer(LENGTH)
    text = files("edlm_hf").joinpath("assets/a_study_in_scarlet.txt").read_text().strip()
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(text)))
    sizes = {"hidden_dim": 128, "cond_dim": 32, "n_blocks": 4, "n_heads": 4, "model_length": LENGTH, "dropout": 0.0}
    sizes |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    denoiser, causal = MDLMForMaskedLM(MDLMConfig(**sizes)), MDLMForCausalLM(MDLMConfig(**sizes, causal=True))
    console.print(f"{len(ids):,} characters of 'A Study in Scarlet' (1887), {denoiser.num_parameters():,} parameters")
    train(denoiser, diffusion_bound, ids, seconds * 2 / 3, generator, console)
    train(causal, next_token_loss, ids, seconds / 3, generator, console)

    model = EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar", tokenizer=tokenizer)
    options = {"batch_size": samples, "max_denoising_steps": steps, "return_dict_in_generate": True}
    for title, k in (("masked diffusion alone", 1), ("with the energy, k = 16 candidates", 16)):
        began = time.monotonic()
        out = model.generate(num_candidates=k, generator=generator, **options)
        cost = f"{time.monotonic() - began:.2f} s, {int(out.num_denoiser_calls.sum())} calls of the denoiser"
        if out.energies is not None:
            size = out.effective_sample_size.nanmean()
            cost += f", {int(out.num_energy_calls.sum())} of the energy, effective sample size {size:.1f} of {k}"
        console.print(f"{samples} x {LENGTH} characters, T = {steps}, {title}: {cost}")
        for row in tokenizer.batch_decode(out.sequences, skip_special_tokens=True):
            console.print(f"  {row}", style="green", highlight=False)
