"""Samples of an arm at T: token ids, network calls, seconds, and the weights of its candidates."""

import torch

from edlm_hf.benchmarks.candidate_profile import add_sums, sums_of_steps
from edlm_hf.benchmarks.left_to_right import sample_left_to_right
from edlm_hf.benchmarks.quality_arms import Arm
from edlm_hf.benchmarks.report import hardware
from edlm_hf.benchmarks.study import Study
from edlm_hf.benchmarks.timing import seconds_now
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput


def generate_samples(study: Study, arm: Arm, steps: int | None, seed: int) -> dict:
    """`num_generated` samples in batches, after a warm-up. The start token is not stored.

    Args:
        steps: T, None for the AR model.
        seed: of the global generator too, from which `generate()` of the AR model draws.
    """
    count = study.settings.num_generated
    size = study.settings.batch_size
    generator = torch.Generator(study.device).manual_seed(seed)
    warm_up_steps = None if steps is None else min(steps, 2)

    # The AR model draws from torch's global generator, whose state is the caller's: fork and restore it
    outputs = []
    cuda_devices = [study.device] if study.device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices):
        # 1. A warm-up with a generator of its own, since the first call of a network takes longer
        sample_batch(study, arm, warm_up_steps, min(count, size), torch.Generator(study.device))

        # 2. The samples. Seconds are those of all batches, without the transfer to the host
        torch.manual_seed(seed)
        began = seconds_now(study.device)
        for finished in range(0, count, size):
            batch = min(size, count - finished)
            outputs.append(sample_batch(study, arm, steps, batch, generator))
        seconds = seconds_now(study.device) - began

    return {
        "ids": [row for output in outputs for row in output.sequences.tolist()],
        "denoiser_calls": torch.cat([output.num_denoiser_calls for output in outputs]).tolist(),
        "energy_calls": torch.cat([output.num_energy_calls for output in outputs]).tolist(),
        "seconds": seconds,
        "hardware": hardware(study.device),
        "steps": add_sums([sums_of_steps(output) for output in outputs]),
    }


def sample_batch(
    study: Study, arm: Arm, steps: int | None, count: int, generator: torch.Generator
) -> EDLMGenerationOutput:
    """`count` samples (count, L) without the start token in front of them."""
    if arm.causal:
        return sample_left_to_right(study, count)

    return study.generate(
        arm.model,
        count,
        generator,
        max_denoising_steps=steps,
        num_candidates=study.settings.num_candidates,
        energy_window=study.settings.window,
    )


__all__ = ["generate_samples"]
