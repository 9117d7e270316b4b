"""The command line: `edlm COMMAND`. Heavy imports happen inside the commands, so that --help is quick.

Results go to stdout, everything else to stderr. Exit codes: 0; 1 for a failure, told in one line; 2 for wrong usage;
130 after Ctrl-C.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from edlm_hf.checkpoints import locate
from edlm_hf.files import to_json, write_atomically
from edlm_hf.options import (
    NAMES,
    NUMBERS,
    Command,
    Config,
    Device,
    Json,
    Sampler,
    SamplerOptions,
    running,
    sampler_settings,
    without_none,
)
from edlm_hf.terminal import QuotesSafely, tell, write

app = typer.Typer(
    name="edlm",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
benchmark = typer.Typer(no_args_is_help=True, help="Measure this package against the published method.")
app.add_typer(benchmark, name="benchmark")


def show_version(wanted: bool) -> None:
    """Print the version and end the program, if that is `wanted`."""
    if wanted:
        write(f"edlm {version('edlm-hf')}")
        raise typer.Exit


@app.callback()
def options_of_the_program(
    show: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Energy-based diffusion language models."""


def main() -> None:
    """The console script: `app`, and what concerns the whole process.

    Progress bars of the libraries appear where ours do, on a terminal. After a success, processes that are connected
    part; not after a failure, which may be that of one alone: the others would be waited for.
    """
    from transformers.utils import logging

    for handler in logging.get_logger("transformers").handlers:
        handler.addFilter(QuotesSafely())
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when a command imports datasets
    try:
        app()
    except SystemExit as end:
        if not end.code:
            from edlm_hf.processes import disconnect

            disconnect()
        raise


@app.command(cls=Command)
def demo(
    prompt: Annotated[str | None, typer.Option(help="The text that is continued.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that continue it.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps T of the planner.")] = 16,
    candidates: Annotated[int, typer.Option(min=2, help="Candidates k that an energy weighs.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    as_json: Json = False,
    config: Config = None,
):
    """Show planned steps and energies at work: a prompt continued, holes filled in, a language that can be checked."""
    from transformers.utils import logging

    from edlm_hf.demo import PROMPT, run_demo

    # Advice of transformers on calls that the reader does not see
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        prompt = PROMPT if prompt is None else prompt
        run_demo(prompt=prompt, new_tokens=new_tokens, steps=steps, candidates=candidates, seed=seed, as_json=as_json)
    finally:
        logging.set_verbosity(verbosity)


@app.command(cls=Command)
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A Lightning .ckpt file of the MDLM or EDLM repository.")],
    output: Annotated[Path, typer.Argument(help="A new folder for the converted model.")],
    ema: Annotated[bool, typer.Option(help="Take the averaged weights where the file has them.")] = True,
    model_length: Annotated[int, typer.Option(help="Longest sequence of the model.")] = 1024,
    mask_token_id: Annotated[int | None, typer.Option(help="Default: the last id of the vocabulary.")] = None,
    time_conditioning: Annotated[bool, typer.Option(help="The denoiser was trained with the noise level.")] = False,
    noise_schedule: Annotated[str, typer.Option(help="Schedule of the training run.")] = "loglinear",
    n_heads: Annotated[int | None, typer.Option(help="Needed where the file does not tell.")] = None,
    as_json: Json = False,
    config: Config = None,
):
    """Convert a published checkpoint (denoiser, AR baseline or EDLM-NCE); nothing in the file is executed."""
    from edlm_hf.conversion import convert_lightning_checkpoint

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
    result = {"class": type(model).__name__, "parameters": model.num_parameters(), "output": str(output)}
    write(to_json(result) if as_json else f"{result['class']} ({result['parameters']:,} parameters) in {output}")


@app.command(cls=Command)
def generate(
    model: Annotated[str, typer.Option(help="Folder or Hub repository, or a checkpoint that ships (edlm-books).")],
    tokenizer: Annotated[str | None, typer.Option(help="Where it is not beside the model.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue; mask tokens in it are filled.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the continuation.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps T.", show_default="the model's, or 128")
    ] = None,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates k that an energy weighs; 1 switches it off.", show_default="the model's, or 8"
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="w: the energy acts at t in [1 - w, 1].", show_default="the model's, or 1.0"),
    ] = None,
    block_length: Annotated[
        int | None,
        typer.Option(min=1, help="Fill blocks of so many tokens, left to right; needed beyond the model's length."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 16,
    seed: Annotated[int | None, typer.Option(min=0, max=2**48, help="Seed; random unless given.")] = None,
    device: Device = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Web page to write: steps and energies.")] = None,
    as_json: Json = False,
    config: Config = None,
):
    """Generate text, or fill the mask tokens of a prompt; in a terminal a single text is shown while it forms.

    Under torchrun the processes share the samples, each with random numbers of its own.
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise typer.BadParameter(f"There is no folder {html.parent}: make it first.", param_hint="--html")
    import torch

    from edlm_hf.loading import load_with_tokenizer
    from edlm_hf.processes import gather_turns, rank_and_world_size
    from edlm_hf.streaming import StepStreamer, TerminalDiffusionStreamer

    process, processes = rank_and_world_size()
    chosen = sampler_settings(sampler, sampler_option)
    network, encoder = load_with_tokenizer(model, tokenizer)
    network = network.to(device)
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed * processes + process)
    mine, texts, rows = len(range(process, samples, processes)), [], []
    forms = samples == 1 and not as_json and sys.stdout.isatty()
    progress, advance = running(process == 0 and not forms)
    start, longest = network.config.bos_token_id, network.config.max_position_embeddings
    if prompt is not None:
        inputs = dict(encoder([prompt], return_tensors="pt"))
    elif start is not None:  # the context of every text that the model has seen
        inputs, saved = {"input_ids": torch.tensor([[start]])}, network.generation_config
        if not (max_new_tokens or saved.max_new_tokens or saved.max_length) and longest is not None:
            max_new_tokens = longest - 1
    else:
        inputs = {}
    options = {"max_new_tokens": max_new_tokens, "max_denoising_steps": steps, "num_candidates": candidates}
    options |= {"energy_window": window, "block_length": block_length} | chosen
    options = without_none(options)
    inputs = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask") if name in inputs}
    streamer = None
    if forms:
        streamer = TerminalDiffusionStreamer(encoder, mask_token_id=network.config.mask_token_id, keep=False)
    elif not progress.disable:
        in_all = network.count_steps(**inputs, **options) * -(-mine // batch_size)
        streamer = StepStreamer(lambda step: advance(step, in_all, f"text {len(texts) + 1} of {mine}, steps"))
    with progress:
        for done in range(0, mine, batch_size):
            count = min(batch_size, mine - done)
            out = network.generate(
                **{name: value.expand(count, -1) for name, value in inputs.items()},
                **options,
                batch_size=count,
                generator=generator,
                streamer=streamer,
                return_dict_in_generate=True,
                output_history=html is not None,
            )
            texts += encoder.batch_decode(out.sequences, skip_special_tokens=True)
            if html is not None:
                from edlm_hf.visualization import trajectories

                rows += trajectories(out, encoder, mask_token_id=network.config.mask_token_id)
    texts, rows = gather_turns(texts), gather_turns(rows)
    if process == 0 and html is not None:
        from edlm_hf.visualization import page

        write_atomically(html, page(rows).encode())
    if process == 0:
        write(to_json(texts) if as_json else "\n\n".join(texts))


@app.command(cls=Command)
def picture(
    model: Annotated[str, typer.Option(help="Folder or Hub repository, or a checkpoint that ships (edlm-books).")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="SVG file to write.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue; mask tokens in it are filled.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=0, help="Length of the continuation.", show_default="112, or as many as fit")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps T.")] = 8,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates k that an energy weighs.")] = 8,
    columns: Annotated[int, typer.Option(min=16, help="Letters of a line.")] = 64,
    states: Annotated[int, typer.Option(min=2, help="States at most, at even distances.")] = 9,
    seed: Annotated[int, typer.Option(min=0, max=2**48, help="Seed of all randomness.")] = 0,
    device: Device = None,
    as_json: Json = False,
    config: Config = None,
):
    """Draw one generation as SVG: its states from mask to text, and the energies of the candidates of every step."""
    if output.suffix != ".svg":
        raise typer.BadParameter(f"{output.name} must end with .svg.", param_hint="--output")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"There is no folder {output.parent}: make it first.", param_hint="--output")

    from edlm_hf.picture import make_picture

    drawn = make_picture(
        model,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
        columns=columns,
        most_states=states,
        max_denoising_steps=steps,
        num_candidates=candidates,
        **sampler_settings(sampler, sampler_option),
    )
    write_atomically(output, drawn.encode())
    result = {"output": str(output), "bytes": len(drawn.encode())}
    write(to_json(result) if as_json else f"{output}: {result['bytes']:,} bytes")


@app.command(cls=Command)
def push(
    folder: Annotated[
        str,
        typer.Argument(
            help="A model or adapter as save_pretrained or training wrote it, or a checkpoint that ships (edlm-books)."
        ),
    ],
    repository: Annotated[str, typer.Argument(help="user/name on the Hub; it is made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Only you see it; refused for a public one.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if needed.", show_default="main")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default="Upload model")] = None,
    as_json: Json = False,
    config: Config = None,
):
    """Upload a model or adapter with its model card to the Hugging Face Hub, in one commit.

    The folder is only read: after an interruption, repeat the command. A card that somebody wrote or edited, there or
    on the Hub, is kept. What is no part of a model repository is not uploaded, and named: checkpoints, the optimiser's
    state, logs, hidden files, links that lead out of the folder. The account is that of `hf auth login` or HF_TOKEN.
    """
    from huggingface_hub.errors import HTTPError

    from edlm_hf.hub import push as push_to_hub

    try:
        commit = push_to_hub(
            locate(folder), repository, private=private or None, revision=revision, commit_message=message
        )
    except HTTPError:
        tell(f"{folder} is as it was: repeat the command to push again.")
        raise
    url = str(commit.repo_url)
    result = {"repository": commit.repo_url.repo_id, "revision": revision or "main", "commit": commit.oid, "url": url}
    write(to_json(result) if as_json else f"{url}, commit {commit.oid}")


TRAINING = {
    "cls": Command,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}


@app.command("train-denoiser", **TRAINING)
def train_denoiser(arguments: typer.Context):
    """Train a masked diffusion model by a recipe (YAML) or flags; --help lists them."""
    from edlm_hf.training import commands

    commands.train_denoiser(arguments.args)


@app.command("train-autoregressive", **TRAINING)
def train_autoregressive(arguments: typer.Context):
    """Train the autoregressive baseline by a recipe (YAML) or flags; --help lists them."""
    from edlm_hf.training import commands

    commands.train_autoregressive(arguments.args)


@app.command("train-energy", **TRAINING)
def train_energy(arguments: typer.Context):
    """Train the NCE energy of a denoiser by a recipe (YAML) or flags; --help lists them."""
    from edlm_hf.training import commands

    commands.train_energy(arguments.args)


@app.command("train-drafts", **TRAINING)
def train_drafts(arguments: typer.Context):
    """Train the draft head of a denoiser, for speculative sampling, by a recipe (YAML) or flags; --help lists them."""
    from edlm_hf.training import commands

    commands.train_drafts(arguments.args)


@app.command(cls=Command)
def evaluate(
    model: Annotated[str, typer.Option(help="Folder or Hub repository of the model and its tokenizer.")],
    data: Annotated[str, typer.Option(help="A protocol (text8, openwebtext, wikitext2, ...), Hub dataset or files.")],
    metrics: Annotated[
        str,
        typer.Option(
            help="Of nelbo, discrete_nelbo, sampler_bound, paper_nll, autoregressive_nll, h_profile.", **NAMES
        ),
    ] = "nelbo",
    tokenizer: Annotated[str | None, typer.Option(help="Where it is not beside the model.")] = None,
    split: Annotated[str | None, typer.Option(help="Unless given the protocol's, or test.")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(help="text8 (26 letters and the space) or none.", show_default="as the tokenizer needs"),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per text; at most the model's.")] = None,
    stride: Annotated[int | None, typer.Option(help="Windows on every document instead of blocks.")] = None,
    num_texts: Annotated[int | None, typer.Option(help="The first so many texts only.")] = None,
    num_steps: Annotated[int, typer.Option(help="T of the sampler.")] = 128,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    num_candidates: Annotated[int | None, typer.Option(help="k of the sampler.")] = None,
    inner_copies: Annotated[int, typer.Option(help="m of the sampler bound; 16 or 64 are tighter than 1.")] = 1,
    energy_window: Annotated[float | None, typer.Option(help="w of the sampler.")] = None,
    num_samples: Annotated[int, typer.Option(help="Noise samples per text, even or 1.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Changes the speed only.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.", show_default="stored")] = None,
    device: Device = None,
    as_json: Json = False,
    config: Config = None,
):
    """Likelihood of a corpus under a model, with standard errors; under torchrun the processes share the work."""
    import torch

    from edlm_hf.benchmarks.report import environment
    from edlm_hf.evaluation.run import EvaluationSettings, evaluate_model
    from edlm_hf.processes import rank_and_world_size

    settings = EvaluationSettings(
        model=model,
        data=data,
        metrics=metrics,
        tokenizer=tokenizer,
        split=split,
        normalize=normalize,
        length=length,
        stride=stride,
        num_texts=num_texts,
        num_steps=num_steps,
        sampler_options=sampler_settings(sampler, sampler_option),
        num_candidates=num_candidates,
        inner_copies=inner_copies,
        energy_window=energy_window,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        device=device,
        progress_bar=sys.stderr.isatty(),
    )
    evaluation = evaluate_model(settings)
    if rank_and_world_size()[0] == 0:
        if as_json:
            write(to_json(evaluation.to_dict() | {"environment": environment(torch.device(device))}))
        else:
            write(evaluation.markdown())


@benchmark.command(cls=Command)
def speed(
    output: Annotated[Path, typer.Option(help="Folder for results.json, results.md and the plots.")],
    modes: Annotated[
        str | None,
        typer.Option(help="Of mdlm, ar, first_hitting, planned.", show_default="all four", **NAMES),
    ] = None,
    vocab_sizes: Annotated[str | None, typer.Option(help="With the mask.", show_default="28,50258", **NUMBERS)] = None,
    steps: Annotated[
        str | None, typer.Option(help="Values of T.", show_default="16,64,128,256,1024", **NUMBERS)
    ] = None,
    planned_steps: Annotated[
        str | None,
        typer.Option(help="T of planned, 8 or 16.", show_default="8,16", **NUMBERS),
    ] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Rows per batch.", show_default="1,8,32", **NUMBERS)] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per row.", show_default="256")] = None,
    width: Annotated[int | None, typer.Option(help="Width of both networks.", show_default="256")] = None,
    blocks: Annotated[int | None, typer.Option(help="Transformer blocks of each.", show_default="8")] = None,
    candidates: Annotated[int | None, typer.Option(help="k of the AR energy.", show_default="8")] = None,
    window: Annotated[float | None, typer.Option(help="w: energy at t in [1 - w, 1].", show_default="1.0")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed runs per side, after a warm-up.", show_default="5")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="float32")] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights.", show_default="0")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile both networks, for both sides.")] = False,
    scaling: Annotated[bool, typer.Option(help="Also the time of ours against L, V, k, T and B alone.")] = False,
    quick: Annotated[bool, typer.Option(help="Small sizes unless given: under two minutes.")] = False,
    as_json: Json = False,
    config: Config = None,
):
    """Time, network calls and memory of generate() against the published samplers, on the same random weights."""
    import dataclasses

    from edlm_hf.benchmarks.speed import QUICK, SpeedSettings, markdown, run_benchmark

    given = {
        "modes": modes,
        "vocab_sizes": vocab_sizes,
        "steps": steps,
        "planned_steps": planned_steps,
        "batch_sizes": batch_sizes,
        "length": length,
        "width": width,
        "blocks": blocks,
        "candidates": candidates,
        "window": window,
        "repeats": repeats,
        "dtype": dtype,
        "device": device,
        "seed": seed,
        "compile": compiled or None,
        "scaling": scaling or None,
    }
    settings = dataclasses.replace(QUICK if quick else SpeedSettings(), **without_none(given))
    progress, advance = running()
    with progress:
        result = run_benchmark(settings, output, advance)
    if not result["plots"]:
        tell("No plots: matplotlib is not installed (pip install matplotlib).")
    write(to_json(result) if as_json else markdown(result))


@benchmark.command(cls=Command)
def quality(
    output: Annotated[Path, typer.Option(help="Folder for results.json, results.md, the plots and finished parts.")],
    model: Annotated[str, typer.Option(help="Denoiser with its tokenizer, or an EDLM composite; folder or Hub.")],
    data: Annotated[list[str], typer.Option(help="A protocol, Hub dataset, files, or name=source; repeat for more.")],
    autoregressive: Annotated[str | None, typer.Option(help="AR model: arm, energy of EDLM-AR, default judge.")] = None,
    nce: Annotated[list[str] | None, typer.Option(help="EDLM composite with an NCE energy; one per scope.")] = None,
    judge: Annotated[str | None, typer.Option(help="Causal language model for Gen-PPL.")] = None,
    vocabulary: Annotated[str | None, typer.Option(help="Corpus of the words that are spelled right.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Values of T.", show_default="8,16,32,64,128,256", **NUMBERS)
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="k of every energy.", show_default="8")] = None,
    window: Annotated[float | None, typer.Option(help="w: energy at t in [1 - w, 1].", show_default="1.0")] = None,
    inner_copies: Annotated[
        str | None, typer.Option(help="m of the bounds.", show_default="1,16,64", **NUMBERS)
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Blocks of each set for the bounds.", show_default="128")] = None,
    noise_samples: Annotated[int | None, typer.Option(help="Per text, 1 or even.", show_default="8")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples per seed.", show_default="256")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Each makes samples of its own.", show_default="0", **NUMBERS)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.", show_default="16")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="float32")] = None,
    device: Device = None,
    quick: Annotated[bool, typer.Option(help="Few steps and samples unless given: under two minutes.")] = False,
    as_json: Json = False,
    config: Config = None,
):
    """Bounds and samples of MDLM, EDLM with each energy and the AR model at equal work; goes on where it stopped."""
    import edlm_hf  # noqa: F401  (registers the model types)
    from edlm_hf.benchmarks.quality import QUICK, QualitySettings, run_study
    from edlm_hf.benchmarks.quality_report import markdown

    given = {
        "autoregressive": autoregressive,
        "nce": tuple(nce or ()),
        "judge": judge,
        "vocabulary": vocabulary,
        "steps": steps,
        "num_candidates": candidates,
        "window": window,
        "inner_copies": inner_copies,
        "num_texts": texts,
        "noise_samples": noise_samples,
        "num_generated": samples,
        "seeds": seeds,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    chosen = (QUICK if quick else {}) | without_none(given)
    settings = QualitySettings(model, tuple(data), **chosen)
    progress, advance = running()
    with progress:
        result = run_study(settings, output, advance)
    if not result["plots"]:
        tell("No plots: matplotlib is not installed (pip install matplotlib).")
    write(to_json(result) if as_json else markdown(result))


@benchmark.command(cls=Command)
def draws(
    steps: Annotated[str | None, typer.Option(help="Values of T.", show_default="128,256,512,1024", **NUMBERS)] = None,
    vocab_size: Annotated[int | None, typer.Option(help="With the mask.", show_default="50258")] = None,
    exponent: Annotated[float | None, typer.Option(help="Of the Zipf distribution.", show_default="1.0")] = None,
    positions: Annotated[
        int | None, typer.Option(help="Tokens to draw as well, by the published steps.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness.", show_default="0")] = None,
    as_json: Json = False,
    config: Config = None,
):
    """What float32 draws do to the tokens of the published sampler: entropy and Gen-PPL, without a network."""
    from edlm_hf.benchmarks.draws import DrawSettings, markdown, measure_draws

    given = {
        "steps": steps,
        "vocab_size": vocab_size,
        "exponent": exponent,
        "positions": positions,
        "seed": seed,
    }
    settings = DrawSettings(**without_none(given))
    rows = measure_draws(settings)
    write(to_json(rows) if as_json else markdown(rows, settings))


@benchmark.command(cls=Command)
def samplers(
    output: Annotated[Path, typer.Option(help="Folder for results.json, results.md, the plot and finished parts.")],
    model: Annotated[str, typer.Option(help="Denoiser with its tokenizer, or an EDLM composite; folder or Hub.")],
    data: Annotated[list[str], typer.Option(help="A protocol, Hub dataset, files, or name=source; repeat for more.")],
    autoregressive: Annotated[str, typer.Option(help="AR model that judges the samples.")],
    vocabulary: Annotated[str | None, typer.Option(help="Corpus of the words that are spelled right.")] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help="'spaced score=entropy @8,16'; repeat for more.", show_default="a list of all rules"),
    ] = None,
    sampled: Annotated[
        list[str] | None, typer.Option(help="One of the samplers, to make samples with.", show_default="all")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="T of samplers without an @.", show_default="4,8,16,32", **NUMBERS)
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Blocks of each set for the bounds.", show_default="256")] = None,
    noise_samples: Annotated[int | None, typer.Option(help="Per text, 1 or even.", show_default="8")] = None,
    inner_copies: Annotated[
        int | None, typer.Option(help="m of bounds with an energy.", show_default="no such bounds")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each; 0: bounds alone.", show_default="256")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness.", show_default="0")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.", show_default="32")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="float32")] = None,
    device: Device = None,
    quick: Annotated[bool, typer.Option(help="Few samplers, texts and samples unless given.")] = False,
    as_json: Json = False,
    config: Config = None,
):
    """Likelihood, samples and time of every way to sample; goes on where it stopped.

    Besides rules of revealing masks, `--sampler` takes `spaced energy=ar candidates=8`, `speculative` and
    `autoregressive`.
    """
    import edlm_hf  # noqa: F401  (registers the model types)
    from edlm_hf.benchmarks.samplers import QUICK, SamplerSettings, run_samplers
    from edlm_hf.benchmarks.samplers_report import markdown

    given = {
        "vocabulary": vocabulary,
        "samplers": tuple(sampler or ()) or None,
        "sampled": tuple(sampled or ()) or None,
        "steps": steps,
        "num_texts": texts,
        "noise_samples": noise_samples,
        "inner_copies": inner_copies,
        "num_generated": samples,
        "seed": seed,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    settings = (QUICK if quick else SamplerSettings)(model, tuple(data), autoregressive, **without_none(given))
    progress, advance = running()
    with progress:
        result = run_samplers(settings, output, advance)
    if not result["plots"] and result["samples"]:
        tell("No plot: matplotlib is not installed (pip install matplotlib).")
    write(to_json(result) if as_json else markdown(result))


@benchmark.command(cls=Command)
def infilling(
    output: Annotated[Path, typer.Option(help="Folder for results.json, results.md and finished parts.")],
    model: Annotated[str, typer.Option(help="Denoiser with its tokenizer, or an EDLM composite; folder or Hub.")],
    data: Annotated[list[str], typer.Option(help="A protocol, Hub dataset, files, or name=source; repeat for more.")],
    autoregressive: Annotated[str | None, typer.Option(help="AR model, as an energy.")] = None,
    paragraphs: Annotated[int | None, typer.Option(help="Paragraphs of each set.", show_default="200")] = None,
    words: Annotated[int | None, typer.Option(help="Hidden words of a paragraph.", show_default="5")] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="'spaced score=entropy @4,8'; repeat for more. The others are compared with the first.",
            show_default="ancestral, first_hitting, spaced score=entropy",
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="T of samplers without an @.", show_default="2,4,8", **NUMBERS)
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Candidates k of every energy; 1 for no energy.", show_default="1")
    ] = None,
    greedy: Annotated[bool, typer.Option(help="Fill with the likeliest tokens too.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Each fills anew.", show_default="0", **NUMBERS)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.", show_default="32")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="float32")] = None,
    device: Device = None,
    as_json: Json = False,
    config: Config = None,
):
    """Share of hidden words that each sampler finds again in held-out paragraphs; goes on where it stopped."""
    import edlm_hf  # noqa: F401  (registers the model types)
    from edlm_hf.benchmarks.infilling import InfillingSettings, run_infilling
    from edlm_hf.benchmarks.infilling_report import markdown

    given = {
        "autoregressive": autoregressive,
        "num_paragraphs": paragraphs,
        "num_words": words,
        "samplers": tuple(sampler or ()) or None,
        "steps": steps,
        "num_candidates": candidates,
        "greedy": greedy,
        "seeds": seeds,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    settings = InfillingSettings(model, tuple(data), **without_none(given))
    progress, advance = running()
    with progress:
        result = run_infilling(settings, output, advance)
    write(to_json(result) if as_json else markdown(result))
