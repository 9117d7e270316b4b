"""EDLM (energy-based diffusion language models, arXiv 2410.21357) for transformers.

Importing this package registers the model types `mdlm` and `edlm` with the auto classes, so that
`AutoModelForMaskedLM.from_pretrained("kuleshov-group/mdlm-owt")` needs no remote code.
"""

from edlm_hf import clone, help_only  # noqa: F401  (in a clone, modeling is found by `clone`)
from edlm_hf.checkpoints import checkpoint

if not help_only.is_wanted():
    from edlm_hf.registration import (
        EDLMConfig,
        EDLMEnergyModel,
        EDLMForMaskedDiffusion,
        EDLMGenerationConfig,
        MDLMConfig,
        MDLMForCausalLM,
        MDLMForMaskedLM,
        MDLMModel,
        load_published_denoiser,
        load_published_tokenizer,
    )

__version__ = "0.2.0"

__all__ = [
    "EDLMConfig",
    "EDLMEnergyModel",
    "EDLMForMaskedDiffusion",
    "EDLMGenerationConfig",
    "MDLMConfig",
    "MDLMForCausalLM",
    "MDLMForMaskedLM",
    "MDLMModel",
    "checkpoint",
    "load_published_denoiser",
    "load_published_tokenizer",
]


def __getattr__(name: str):
    """A public name where only help was wanted, but a command runs after all."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edlm_hf import registration

    return getattr(registration, name)
