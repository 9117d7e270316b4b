"""Registers the model types `mdlm` and `edlm` with the auto classes of transformers. Has the names of the package."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import sharing
from edlm_hf.modeling.checkpoints import CheckpointingMixin
from edlm_hf.modeling.configuration_edlm import EDLMConfig
from edlm_hf.modeling.configuration_mdlm import MDLMConfig
from edlm_hf.modeling.energy_edlm import EDLMEnergyModel
from edlm_hf.modeling.generation_edlm import EDLMGenerationConfig
from edlm_hf.modeling.mdlm_trunk import MDLMModel
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.modeling.modeling_mdlm import MDLMForMaskedLM
from edlm_hf.modeling.modeling_mdlm_causal import MDLMForCausalLM
from edlm_hf.published_denoisers import load_published_denoiser, load_published_tokenizer

AutoConfig.register("mdlm", MDLMConfig, exist_ok=True)
AutoConfig.register("edlm", EDLMConfig, exist_ok=True)
AutoModel.register(MDLMConfig, MDLMModel, exist_ok=True)
AutoModelForMaskedLM.register(MDLMConfig, MDLMForMaskedLM, exist_ok=True)
AutoModelForCausalLM.register(MDLMConfig, MDLMForCausalLM, exist_ok=True)
for auto_class in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
    auto_class.register(EDLMConfig, EDLMForMaskedDiffusion, exist_ok=True)

# From here on models are saved and pushed with a card
CheckpointingMixin.sharing = sharing

__all__ = [
    "EDLMConfig",
    "EDLMEnergyModel",
    "EDLMForMaskedDiffusion",
    "EDLMGenerationConfig",
    "MDLMConfig",
    "MDLMForCausalLM",
    "MDLMForMaskedLM",
    "MDLMModel",
    "load_published_denoiser",
    "load_published_tokenizer",
]
