"""`edlm convert`: a Lightning checkpoint of the MDLM or EDLM repository as a model of transformers."""

from dataclasses import dataclass
from pathlib import Path

from edlm_hf.defaults import MODEL_LENGTH, NOISE_SCHEDULE
from edlm_hf.files import to_json
from edlm_hf.settings import option
from edlm_hf.terminal import write


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What the weights of a checkpoint do not say."""

    checkpoint: Path = option(positional=True, help="A Lightning .ckpt file of the MDLM or EDLM repository.")
    output: Path = option(positional=True, help="A new folder for the converted model.")
    ema: bool = option(True, help="Take the averaged weights where the file has them.")
    model_length: int = option(MODEL_LENGTH, help="Longest sequence of the model.")
    mask_token_id: int | None = option(None, shown="the last id of the vocabulary", help="The mask token.")
    time_conditioning: bool = option(False, help="The denoiser was trained with the noise level.")
    noise_schedule: str = option(NOISE_SCHEDULE, help="Schedule of the training run.")
    n_heads: int | None = option(None, help="Needed where the file does not tell.")


def convert(options: ConvertOptions, as_json: bool) -> None:
    """Convert a published checkpoint (denoiser, AR baseline or EDLM-NCE); nothing in the file is executed."""
    from edlm_hf.conversion import convert_lightning_checkpoint

    model = convert_lightning_checkpoint(
        options.checkpoint,
        options.output,
        use_ema=options.ema,
        model_length=options.model_length,
        mask_token_id=options.mask_token_id,
        time_conditioning=options.time_conditioning,
        noise_schedule=options.noise_schedule,
        n_heads=options.n_heads,
    )

    # The class says what the file held: a denoiser, an AR baseline or an EDLM composite
    name = type(model).__name__
    parameters = model.num_parameters()
    result = {"class": name, "parameters": parameters, "output": str(options.output)}
    line = f"{name} ({parameters:,} parameters) in {options.output}"
    write(to_json(result) if as_json else line)
