"""The command line: `edlm COMMAND`. Heavy imports happen inside the commands, so that --help is quick."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Energy-based diffusion language models.")


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How long to learn.")] = 60,
    samples: Annotated[int, typer.Option(help="How many texts to generate.")] = 4,
    steps: Annotated[int, typer.Option(help="Denoising steps T.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
):
    """Learn a small model from a book in a minute and generate from it."""
    from edlm_hf.demo import run

    run(seconds=seconds, samples=samples, steps=steps, seed=seed)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A Lightning .ckpt file of the MDLM or EDLM repository.")],
    output: Annotated[Path, typer.Argument(help="A new folder for the converted model.")],
    ema: Annotated[bool, typer.Option(help="Take the averaged weights where the file has them.")] = True,
    model_length: Annotated[int, typer.Option(help="Longest sequence of the model.")] = 1024,
    mask_token_id: Annotated[int | None, typer.Option(help="Default: the last id of the vocabulary.")] = None,
    time_conditioning: Annotated[bool, typer.Option(help="The denoiser was trained with the noise level.")] = False,
    noise_schedule: Annotated[str, typer.Option(help="Schedule of the training run.")] = "loglinear",
    n_heads: Annotated[int | None, typer.Option(help="Needed where the file does not tell.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
):
    """Convert a published checkpoint (denoiser, AR baseline or EDLM-NCE); nothing in the file is executed."""
    from edlm_hf.conversion import convert_lightning_checkpoint

    try:
        model = convert_lightning_checkpoint(
            checkpoint,
            output,
            use_ema=ema,
            model_length=model_length,
            mask_token_id=mask_token_id,
            time_conditioning=time_conditioning,
            noise_schedule=noise_schedule,
            n_heads=n_heads,
        )
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"edlm convert: {error}", err=True)
        raise typer.Exit(1) from None
    result = {"class": type(model).__name__, "parameters": model.num_parameters(), "output": str(output)}
    typer.echo(
        json.dumps(result) if as_json else f"{result['class']} ({result['parameters']:,} parameters) in {output}"
    )


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder or Hub repository of the model and its tokenizer.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue; mask tokens in it are filled.")] = None,
    samples: Annotated[int, typer.Option(help="How many texts.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of the continuation.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps T.")] = 128,
    seed: Annotated[int | None, typer.Option(help="Seed; random unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the texts as a JSON list.")] = False,
):
    """Generate text, or fill the mask tokens of a prompt."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    import edlm_hf  # noqa: F401  (registers the model types)

    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    network, tokenizer = AutoModelForMaskedLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    inputs = {} if prompt is None else dict(tokenizer([prompt] * samples, return_tensors="pt"))
    rows = network.generate(
        **{name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs},
        batch_size=samples,
        max_new_tokens=max_new_tokens,
        max_denoising_steps=steps,
        generator=generator,
    )
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    typer.echo(json.dumps(texts) if as_json else "\n\n".join(texts))
