"""Both sides of a comparison: the published sampler and `generate()` on the same networks."""

from dataclasses import dataclass

import torch

from edlm_hf.benchmarks.published import AutoregressiveEnergy, sample_published
from edlm_hf.benchmarks.speed_settings import OURS, PUBLISHED, Comparison, SpeedSettings
from edlm_hf.benchmarks.timing import Stopwatch, seconds_now
from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.modeling_mdlm_causal import MDLMForCausalLM

# `sampler=` of `generate()` and its parameters
OWN_SAMPLERS = {
    "mdlm": {"sampler": "ancestral"},
    "ar": {"sampler": "ancestral"},
    "first_hitting": {"sampler": "first_hitting"},
    "planned": {"sampler": "spaced"},
}


def random_model(comparison: Comparison, settings: SpeedSettings) -> EDLMForMaskedDiffusion:
    """Denoiser and AR energy, with normal noise on every parameter so that no logits are constant.

    The energy's start token is an id of its own, after the denoiser's vocabulary.
    """
    # Heads of 64 dimensions, as in the networks of the papers
    vocab_size = comparison.vocab_size
    sizes = {
        "hidden_dim": settings.width,
        "n_blocks": settings.blocks,
        "n_heads": max(1, settings.width // 64),
        "model_length": comparison.length,
        "mask_token_id": vocab_size - 1,
        "dropout": 0.0,
    }
    denoiser = MDLMForMaskedLM(MDLMConfig(vocab_size=vocab_size, **sizes))
    energy_config = MDLMConfig(
        vocab_size=vocab_size + 1,
        causal=True,
        bos_token_id=vocab_size,
        **sizes,
    )
    energy = MDLMForCausalLM(energy_config)

    # As constructed, the last layer of both networks is zero
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for parameter in (*denoiser.parameters(), *energy.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    # The backbones alone are compiled: both sides call them, and have loops of their own
    model = EDLMForMaskedDiffusion.from_components(denoiser, energy, energy_type="ar")
    model = model.to(settings.device, getattr(torch, settings.dtype)).eval()
    if settings.compile:
        model.denoiser.backbone.compile()
        model.energy_model.backbone.compile()
    return model


@dataclass
class Timing:
    """Seconds of one run, the seconds inside the energy, and network calls per row."""

    seconds: float
    energy_seconds: float
    denoiser_calls: float
    energy_calls: float


class Contest:
    """Both samplers in one comparison: `time(side, seed)` runs one of them."""

    def __init__(self, model: EDLMForMaskedDiffusion, comparison: Comparison, settings: SpeedSettings):
        self.model = model
        self.comparison = comparison
        self.settings = settings
        self.device = next(model.parameters()).device

        # (B, L), x_t at t = 1: nothing is given
        mask_token_id = model.config.mask_token_id
        shape = (comparison.batch_size, comparison.length)
        self.ids = torch.full(shape, mask_token_id, device=self.device)

        # Both energies are timed. Ours takes the place of the model's method, which an earlier
        # contest may have replaced.
        model.__dict__.pop("own_energy", None)
        own_energy = Stopwatch(model.own_energy("sequence"), self.device)
        model.own_energy = lambda *_: own_energy

        # The baseline computes the same energy E_AR in its own way
        start = model.energy_model.config.bos_token_id
        published = AutoregressiveEnergy(model.energy_model, comparison.vocab_size, mask_token_id, start)
        self.energies = {PUBLISHED: Stopwatch(published, self.device), OURS: own_energy}

    def time(self, side: str, seed: int, steps: int | None = None) -> Timing:
        """One run of a side, at its own T unless `steps` says otherwise."""
        sample = self.sample_published if side == PUBLISHED else self.sample_ours
        generator = torch.Generator(self.device).manual_seed(seed)
        steps = steps or self.comparison.steps_of(side)

        began = seconds_now(self.device)
        denoiser_calls, energy_calls = sample(generator, steps)
        seconds = seconds_now(self.device) - began

        energy_seconds = self.energies[side].take_seconds()
        return Timing(seconds, energy_seconds, denoiser_calls, energy_calls)

    def sample_published(self, generator: torch.Generator, steps: int) -> tuple[float, float]:
        """Calls of the denoiser and of the energy per row."""
        has_energy = self.comparison.mode == "ar"
        result = sample_published(
            self.model.denoiser,
            self.ids,
            self.model.config.mask_token_id,
            steps,
            energy=self.energies[PUBLISHED] if has_energy else None,
            num_candidates=self.comparison.num_candidates,
            energy_window=self.settings.window,
            generator=generator,
        )
        return float(result.denoiser_calls), float(result.energy_calls)

    def sample_ours(self, generator: torch.Generator, steps: int) -> tuple[float, float]:
        """Calls of the denoiser and of the energy per row."""
        result = self.model.generate(
            self.ids,
            max_denoising_steps=steps,
            num_candidates=self.comparison.num_candidates,
            energy_window=self.settings.window,
            generator=generator,
            return_dict_in_generate=True,
            **OWN_SAMPLERS[self.comparison.mode],
        )
        assert not (result.sequences == self.model.config.mask_token_id).any()

        # (B,) calls each: a row that is finished needs no more
        denoiser_calls = result.num_denoiser_calls.double().mean()
        energy_calls = result.num_energy_calls.double().mean()
        return float(denoiser_calls), float(energy_calls)


__all__ = ["Contest", "Timing", "random_model"]
