"""`edlm demo`: text from the checkpoint that ships, by the denoiser alone and with either energy, and what it cost."""

import time

import torch
from rich.console import Console

from edlm_hf.checkpoints import CHECKPOINTS
from edlm_hf.files import to_json
from edlm_hf.loading import load_causal, load_with_tokenizer
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.terminal import visible


def run(samples: int = 2, steps: int = 16, candidates: int = 8, seed: int = 0, as_json: bool = False) -> None:
    """Generate `samples` texts in `steps` steps with each sampler; print them with seconds, calls and sample size."""
    console, name, results = Console(quiet=as_json), "edlm-books", []
    model, tokenizer = load_with_tokenizer(name)
    causal = load_causal(f"{name}-ar")
    with_causal = EDLMForMaskedDiffusion.from_components(model.denoiser, causal, energy_type="ar", tokenizer=tokenizer)
    console.print(f"{name}: {CHECKPOINTS[name]}; {model.num_parameters():,} parameters")
    arms = (
        ("MDLM, the denoiser alone", model, 1),
        ("EDLM-NCE, the trained energy", model, candidates),
        ("EDLM-AR, the autoregressive baseline as the energy", with_causal, candidates),
    )
    start = torch.full((samples, 1), tokenizer.bos_token_id)
    length = model.config.max_position_embeddings - 1
    for title, network, k in arms:
        began = time.monotonic()
        out = network.generate(
            start,
            max_new_tokens=length,
            max_denoising_steps=steps,
            num_candidates=k,
            generator=torch.Generator().manual_seed(seed),
            return_dict_in_generate=True,
        )
        result = {
            "sampler": title,
            "length": length,
            "steps": steps,
            "candidates": k,
            "seconds": round(time.monotonic() - began, 3),
            "denoiser_calls": int(out.num_denoiser_calls.sum()),
            "energy_calls": int(out.num_energy_calls.sum()),
            "effective_sample_size": None if out.energies is None else float(out.effective_sample_size.nanmean()),
            "texts": tokenizer.batch_decode(out.sequences, skip_special_tokens=True),
        }
        results.append(result)
        cost = f"{result['seconds']:.1f} s, {result['denoiser_calls']} calls of the denoiser"
        if out.energies is not None:
            size = result["effective_sample_size"]
            cost += f", {result['energy_calls']} of the energy, effective sample size {size:.1f} of {k}"
        console.print(f"\n{title}: {samples} x {length} characters, T = {steps}, k = {k}\n{cost}", highlight=False)
        for text in result["texts"]:
            console.print(f"  {visible(text)}", style="green", highlight=False, markup=False)
    if as_json:
        print(to_json(results))
