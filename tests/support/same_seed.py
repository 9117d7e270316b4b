"""Calls of generate() whose tokens are recorded in tests/golden/same_seed.json: equal seeds give equal tokens for good.

python tests/support/same_seed.py          writes the file anew (only where a change of tokens is meant)
"""

import json
from itertools import product
from pathlib import Path

import torch

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.modeling_mdlm_causal import MDLMForCausalLM

RECORDED = Path(__file__).parents[1] / "golden" / "same_seed.json"
VOCABULARY, MASK, LENGTH = 11, 10, 24


def with_noise(network, seed: int):
    """The network in float64 with normal noise on every parameter, so that no logits are constant."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def networks() -> dict[str, EDLMForMaskedDiffusion]:
    """One composite for every kind of energy, and one whose denoiser is conditioned on time."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_dim": 16,
        "n_blocks": 2,
        "n_heads": 2,
        "model_length": 32,
    }
    sizes |= {"mask_token_id": MASK, "dropout": 0.0, "cond_dim": 8}

    def denoiser(**changes):
        torch.manual_seed(0)
        return with_noise(MDLMForMaskedLM(MDLMConfig(**(sizes | changes))), 1)

    torch.manual_seed(0)
    causal = with_noise(MDLMForCausalLM(MDLMConfig(**sizes, causal=True, bos_token_id=0)), 2)
    combine = EDLMForMaskedDiffusion.from_components
    nce = combine(denoiser(), energy_type="nce")
    with_noise(nce.energy_model, 3)
    shared = combine(denoiser(), energy_type="nce", energy_weights="shared", energy_adapter_rank=2)
    with_noise(shared.energy_model, 4)
    return {
        "mdlm": combine(denoiser()),
        "time": combine(denoiser(time_conditioning=True)),
        "cosine": combine(denoiser(noise_schedule="cosine")),
        "ar": combine(denoiser(), causal),
        "coar": combine(denoiser(), causal, energy_type="coar"),
        "nce": nce,
        "shared": shared,
    }


def prompts() -> dict[str, dict]:
    """Rows from nothing, a prompt, holes to fill, and rows of unequal length with padding on the right."""
    holes = torch.tensor(
        [
            [1, 2, MASK, MASK, 5, MASK, 7, 8, MASK, MASK],
            [MASK] * 5 + [3, 4, 5, MASK, 1],
        ]
    )
    ragged = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [3, 0, 0, 0, 0, 0]])
    lengths = torch.tensor([6, 3, 1])
    return {
        "nothing": {"batch_size": 3, "max_length": LENGTH},
        "prompt": {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "max_new_tokens": 14},
        "holes": {"input_ids": holes},
        "ragged": {
            "input_ids": ragged,
            "attention_mask": (torch.arange(6) < lengths.unsqueeze(1)).long(),
            "max_new_tokens": 12,
        },
    }


OPTIONS = {
    "T4": {"max_denoising_steps": 4},
    "T40": {"max_denoising_steps": 40},
    "first_hitting": {"sampler": "first_hitting"},
    "window": {"max_denoising_steps": 6, "energy_window": 0.5, "num_candidates": 3},
    "hitting_window": {"sampler": "first_hitting", "energy_window": (0.3, 0.8), "num_candidates": 2},
    "blocks": {"max_denoising_steps": 5, "block_length": 5, "num_candidates": 3},
    "filtered": {"max_denoising_steps": 5, "temperature": 0.8, "top_k": 5, "top_p": 0.9},
    "greedy": {"max_denoising_steps": 5, "do_sample": False},
    "greedy_hitting": {"sampler": "first_hitting", "do_sample": False},
    "sequences": {"max_denoising_steps": 3, "num_return_sequences": 2},
}


def samples() -> dict[str, list[list[int]]]:
    """Token ids of every network with every prompt and all options."""
    found = {}
    for (name, network), (prompt, inputs), (option, settings) in product(
        networks().items(), prompts().items(), OPTIONS.items()
    ):
        if prompt == "nothing" and "num_return_sequences" in settings:
            continue
        generator = torch.Generator().manual_seed(5)
        rows = network.generate(**inputs, **settings, generator=generator)
        found[f"{name} {prompt} {option}"] = rows.tolist()

    return found


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in samples().items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
