"""`edlm demo`: text from the checkpoint that ships, by the denoiser alone and with either energy, and what it cost."""

import time

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.checkpoints import CHECKPOINTS
from edlm_hf.files import to_json
from edlm_hf.loading import load_causal, load_with_tokenizer
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.terminal import visible

NAME = "edlm-books"


def run_demo(samples: int = 2, steps: int = 16, candidates: int = 8, seed: int = 0, as_json: bool = False) -> None:
    """Generate texts with each sampler, and print them with seconds, calls and effective sample size.

    Args:
        samples: texts of each sampler.
        steps: denoising steps T.
        candidates: k, of the samplers with an energy.
        as_json: print JSON instead.
    """
    console = Console(quiet=as_json)

    # 1. The same denoiser under three energies: none (a single candidate), NCE and AR
    model, tokenizer = load_with_tokenizer(NAME)
    causal = load_causal(f"{NAME}-ar")
    with_causal = EDLMForMaskedDiffusion.from_components(model.denoiser, causal, energy_type="ar", tokenizer=tokenizer)
    samplers = (
        ("MDLM, the denoiser alone", model, 1),
        ("EDLM-NCE, the trained energy", model, candidates),
        ("EDLM-AR, the autoregressive baseline as the energy", with_causal, candidates),
    )
    console.print(f"{NAME}: {CHECKPOINTS[NAME]}; {model.num_parameters():,} parameters")

    # 2. Texts of each
    results = []
    for title, network, num_candidates in samplers:
        result = {"sampler": title, **generate(network, tokenizer, samples, steps, num_candidates, seed)}
        results.append(result)
        print_result(console, result)

    if as_json:
        print(to_json(results))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    steps: int,
    candidates: int,
    seed: int,
) -> dict:
    """Generate texts of the greatest length, and measure their cost."""
    start = torch.full((samples, 1), tokenizer.bos_token_id)  # (B, 1)
    length = model.config.max_position_embeddings - 1

    began = time.monotonic()
    out = model.generate(
        start,
        max_new_tokens=length,
        max_denoising_steps=steps,
        num_candidates=candidates,
        generator=torch.Generator().manual_seed(seed),
        return_dict_in_generate=True,
    )
    seconds = time.monotonic() - began

    # (steps, B), NaN where the energy was not called
    sample_size = None if out.energies is None else float(out.effective_sample_size.nanmean())
    return {
        "length": length,
        "steps": steps,
        "candidates": candidates,
        "seconds": round(seconds, 3),
        "denoiser_calls": int(out.num_denoiser_calls.sum()),
        "energy_calls": int(out.num_energy_calls.sum()),
        "effective_sample_size": sample_size,
        "texts": tokenizer.batch_decode(out.sequences, skip_special_tokens=True),
    }


def print_result(console: Console, result: dict) -> None:
    """Print the cost of a sampler, then its texts."""
    size = f"{len(result['texts'])} x {result['length']} characters"
    title = f"{result['sampler']}: {size}, T = {result['steps']}, k = {result['candidates']}"

    cost = f"{result['seconds']:.1f} s, {result['denoiser_calls']} calls of the denoiser"
    sample_size = result["effective_sample_size"]
    if sample_size is not None:
        cost += f", {result['energy_calls']} of the energy"
        cost += f", effective sample size {sample_size:.1f} of {result['candidates']}"

    console.print(f"\n{title}\n{cost}", highlight=False)
    for text in result["texts"]:
        console.print(f"  {visible(text)}", style="green", highlight=False, markup=False)


__all__ = ["run_demo"]
