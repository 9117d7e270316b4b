"""The fill-mask pipeline for masked diffusion, which offers the tokens that p_theta can draw.

The `logits` of a denoiser are raw. They include the mask token, which a softmax over all of them
would offer. The class below stands in for the pipeline of transformers and leaves other models as
they are.
"""

from transformers import FillMaskPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .vocabulary import check_mask_token, suppress_impossible

MODEL_TYPES = ("mdlm", "edlm")


class MaskedDiffusionFillMaskPipeline(FillMaskPipeline):
    """Candidates for the mask tokens of a text, with their probabilities under SUBS.

    Raises:
        ValueError: the mask token of the tokenizer is not the one of the model.
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
