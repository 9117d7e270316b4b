"""EDLM (energy-based diffusion language models, arXiv 2410.21357) for transformers.

Importing this package registers the model types `mdlm` and `edlm` with the auto classes, so that
`AutoModelForMaskedLM.from_pretrained("kuleshov-group/mdlm-owt")` needs no remote code.
"""

from edlm_hf import clone, help_only  # noqa: F401  (in a clone, modeling is found by `clone`)
from edlm_hf.checkpoints import checkpoint

if not help_only.is_wanted():
    from edlm_hf import registration  # noqa: F401
    from edlm_hf.modeling.configuration_edlm import EDLMConfig
    from edlm_hf.modeling.configuration_mdlm import MDLMConfig
    from edlm_hf.modeling.energy_edlm import EDLMEnergyModel
    from edlm_hf.modeling.generation_edlm import EDLMGenerationConfig
    from edlm_hf.modeling.mdlm_trunk import MDLMModel
    from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
    from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
    from edlm_hf.modeling.modeling_mdlm_causal import MDLMForCausalLM
    from edlm_hf.published_denoisers import load_published_denoiser, load_published_tokenizer

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
