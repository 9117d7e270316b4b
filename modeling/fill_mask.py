"""The fill-mask pipeline of transformers for masked diffusion: it offers what p_theta can draw.

The `logits` of a denoiser are raw, the mask token's among them, which a softmax over all of them would offer. This
class takes the place of the pipeline of transformers and does what that does for all other models.
"""

from transformers import FillMaskPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .vocabulary import check_mask_token, suppress_impossible

MODEL_TYPES = ("mdlm", "edlm")


class MaskedDiffusionFillMaskPipeline(FillMaskPipeline):
    """Candidates for the mask tokens of a text, with their probabilities under SUBS.

    Raises:
        ValueError: the tokenizer's mask token is not that of the model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_masked_diffusion = getattr(self.model.config, "model_type", None) in MODEL_TYPES
        if self.is_masked_diffusion:
            check_mask_token(self.tokenizer, self.model.config)

    def _forward(self, model_inputs):
        outputs = super()._forward(model_inputs)
        if self.is_masked_diffusion:
            outputs["logits"] = suppress_impossible(outputs["logits"], self.model.config)
        return outputs


def register_fill_mask() -> None:
    """Let `pipeline("fill-mask", ...)` make this class."""
    PIPELINE_REGISTRY.supported_tasks["fill-mask"]["impl"] = MaskedDiffusionFillMaskPipeline


__all__ = ["MaskedDiffusionFillMaskPipeline", "register_fill_mask"]
