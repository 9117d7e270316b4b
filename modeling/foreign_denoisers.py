"""Denoisers of others that differ in their conventions: shifted logits, an attention mask of their own, a causal class.

Dream (arXiv 2508.15487) and DiffuGPT (arXiv 2410.17891) were causal models first, and still predict token i at position
i - 1. A decoder of transformers whose configuration says `is_causal=False` is bidirectional, and can be a denoiser.
"""

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig

from .configuration_edlm import EDLMConfig


def as_denoiser(network: nn.Module) -> nn.Module:
    """The network, so that it can be called as `network(input_ids=..., attention_mask=...)`."""
    if is_dream(network) and not isinstance(network, DreamDenoiser):
        return DreamDenoiser(network)
    return network


class DreamDenoiser(nn.Module):
    """A Dream model, whose attention takes its mask as it is, called with the usual mask (B, L)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is not None:
            attention_mask = attention_mask.bool()[:, None, None]  # (B, 1, 1, L): which keys are real
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.get_output_embeddings()


def default_shift(network: nn.Module) -> int:
    """1 if the logits at position i - 1 predict token i, as far as a network says, else 0."""
    config = getattr(network, "config", None)
    stated = getattr(config, "logits_shift", None)
    if stated is None or isinstance(config, EDLMConfig):  # a composite has undone its shift already
        return int(is_dream(network))
    return int(stated)


def is_dream(network: nn.Module) -> bool:
    """Whether a network is one of the code that is published with Dream."""
    return str(getattr(getattr(network, "config", None), "model_type", "")).lower() == "dream"


def build_foreign_denoiser(config: PreTrainedConfig) -> nn.Module:
    """A masked language model, or a bidirectional decoder, of a configuration that transformers knows.

    Raises:
        ValueError: the configuration is of a causal model.
    """
    check_bidirectional(config)
    is_masked = type(config) in AutoModelForMaskedLM._model_mapping
    auto_class = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
    return auto_class.from_config(config, trust_remote_code=False)


def check_bidirectional(config: PreTrainedConfig) -> None:
    """Refuse the configuration of a model that would be built with a causal mask."""
    is_masked = type(config) in AutoModelForMaskedLM._model_mapping
    if not is_masked and getattr(config, "is_causal", True):
        raise ValueError(
            f"The denoiser's configuration is of a causal language model ({config.model_type!r}): built from it, the "
            "network could not denoise. If its attention is bidirectional, say so there (config.is_causal = False)."
        )


__all__ = ["as_denoiser", "build_foreign_denoiser", "check_bidirectional", "default_shift"]
