"""Lightning checkpoints (.ckpt) of the MDLM and EDLM repositories, turned into models that `from_pretrained` loads.

A denoiser, an autoregressive baseline and an EDLM with an NCE energy are told apart by their keys,
and sizes come from tensor shapes. The weights do not tell length, mask token, time conditioning and
noise schedule: the caller gives these. Nothing in the file is executed or imported (see
`edlm_hf.lightning`).
"""

from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from edlm_hf.defaults import MODEL_LENGTH, NOISE_SCHEDULE
from edlm_hf.lightning import Checkpoint
from edlm_hf.lightning_networks import apply_averaged_weights, split_networks
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.new_folders import check_new_folder, new_folder

logger = logging.get_logger(__name__)


def convert_lightning_checkpoint(
    path: str | Path,
    output_dir: str | Path,
    *,
    use_ema: bool = True,
    model_length: int = MODEL_LENGTH,
    mask_token_id: int | None = None,
    time_conditioning: bool = False,
    noise_schedule: str = NOISE_SCHEDULE,
    n_heads: int | None = None,
    dropout: float = 0.1,
) -> PreTrainedModel:
    """Write the model of a Lightning checkpoint to `output_dir` in the transformers format, and return it.

    Args:
        path: a .ckpt file as the MDLM or EDLM repository writes it.
        output_dir: new or empty folder. It appears when everything in it is complete.
        use_ema: take the averaged weights where the file has them, as the published evaluation does.
        model_length: longest sequence the model was trained on.
        mask_token_id: the last id of the vocabulary unless given.
        time_conditioning: whether the denoiser (and the energy) was trained with the noise level as
            input.
        noise_schedule: the schedule of the training.
        n_heads: needed only where the file lacks `rotary_emb.inv_freq`, which tells the size of a
            head.
        dropout: of the residual branches, for further training.

    Returns:
        `MDLMForMaskedLM`, `MDLMForCausalLM` (no conditioning weights in the file) or
        `EDLMForMaskedDiffusion` with an NCE energy (weights under `ebm.`), in eval mode.

    Raises:
        ValueError: the output folder is not empty, the file is not such a checkpoint or cannot be
            read safely, keys are missing or left over, a weight is not a dense floating-point
            tensor, shapes or the two copies of the energy disagree, the averaged weights fit no
            part of the model, or the number of heads is unknown. Nothing is written then.
        FileNotFoundError: there is no file `path`.
    """
    target = check_new_folder(output_dir, "output_dir")

    # 1. The networks of the file: one, or a denoiser and its energy
    checkpoint = Checkpoint(path)
    networks = split_networks(checkpoint.weights())

    # 2. A new model for each, which raises where names or shapes of the file do not fit
    options = {
        "model_length": model_length,
        "mask_token_id": mask_token_id,
        "time_conditioning": time_conditioning,
        "noise_schedule": noise_schedule,
        "dropout": dropout,
    }
    models = [network.new_model(n_heads, options) for network in networks]

    # 3. The weights
    if use_ema:
        averaged = checkpoint.averaged_weights()
        if averaged is None:
            logger.warning("The checkpoint has no averaged (EMA) weights: its plain weights are converted.")
        else:
            apply_averaged_weights(networks, averaged)

    for network, model in zip(networks, models, strict=True):
        model.load_state_dict(network.weights, strict=True)

    # 4. One model, written whole
    model = models[0]
    if len(models) == 2:
        model = EDLMForMaskedDiffusion.from_components(*models, energy_type="nce", mask_token_id=mask_token_id)
    model.eval()

    with new_folder(target) as folder:
        model.save_pretrained(folder)
    return model


__all__ = ["convert_lightning_checkpoint"]
