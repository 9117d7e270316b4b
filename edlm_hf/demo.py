"""`edlm demo`: text from the checkpoint that ships, by the denoiser alone and with either energy, and what it cost."""

import time

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from edlm_hf.checkpoints import CHECKPOINTS, checkpoint
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion


def run(samples: int = 2, steps: int = 32, candidates: int = 8, seed: int = 0) -> None:
    """Generate `samples` texts in `steps` steps with each sampler; print them with seconds, calls and sample size."""
    console, name = Console(), "edlm-books"
    model = AutoModelForMaskedLM.from_pretrained(checkpoint(name))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    causal = AutoModelForCausalLM.from_pretrained(checkpoint(f"{name}-ar"))
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
        cost = f"{time.monotonic() - began:.1f} s, {int(out.num_denoiser_calls.sum())} calls of the denoiser"
        if out.energies is not None:
            size = out.effective_sample_size.nanmean()
            cost += f", {int(out.num_energy_calls.sum())} of the energy, effective sample size {size:.1f} of {k}"
        console.print(f"\n{title}: {samples} x {length} characters, T = {steps}, k = {k}\n{cost}", highlight=False)
        for row in tokenizer.batch_decode(out.sequences, skip_special_tokens=True):
            console.print(f"  {row}", style="green", highlight=False)
