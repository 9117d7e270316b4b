"""Make the checkpoints that ship out of what the recipes leave: half the bytes, no code (the package has it), the card.

    python recipes/ship.py edlm-books edlm-books-ar --runs RUNS --results results/prose --hardware "Two cores, seed 0"

RUNS holds the folders of the recipes. RESULTS holds the output of `edlm evaluate --json` on the
checkpoints that ship, `nelbo-*.json` and `ar-*.json`, for the cards. So run it once for the weights,
measure those, and run it again for the cards.
"""

import argparse
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import edlm_hf  # noqa: F401  (registers the models)
from edlm_hf.cards import CardFacts
from edlm_hf.checkpoints import ASSETS

TRAIN = "OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 $(which edlm)"


@dataclass(frozen=True)
class Shipped:
    """A checkpoint that ships.

    Args:
        folder: of the run that made it, below RUNS.
        commands: that repeat it.
        data: what it was trained on.
        limits: what it cannot do.
        auto_class: that loads it.
        generation: settings of `generate()` that it brings.
    """

    folder: str
    commands: tuple[str, ...]
    data: str
    limits: str
    auto_class: type = AutoModelForMaskedLM
    generation: dict = field(default_factory=dict)


def recipe(command: str, name: str) -> str:
    """The command of a recipe on two processes."""
    return f"{TRAIN} {command} recipes/{name}.yaml"


def once_more(command: str, kind: str, stage: str, next_stage: str, flags: str) -> str:
    """The command by which a continued network of the books goes on again, from one of its stages to the next."""
    recipe_of_kind = recipe(command, f"prose_cpu/{kind}_continued")
    run = f"prose-cpu-{kind}"
    return f"{recipe_of_kind} --model {run}-{stage} --output_dir {run}-{next_stage} {flags}"


PLANNED = {"sampler": "spaced", "max_denoising_steps": 16}

# What the networks of one corpus have in common
of_prose = partial(
    Shipped,
    data="506 public-domain books, first published 1850-1928, of the collection mlschmitt/classic-books-markdown (nine "
    "others are the validation and test splits), as they are printed, in 4,096 tokens of a byte-level BPE.",
    limits="The models of this family took 302 minutes together on two CPU cores: they show what the method does and "
    "are no good writers. They know the English of books from 1850 to 1928, and the opinions of those books.",
)
PROSE_CAUSAL = (
    "python recipes/tokenizer.py",
    recipe("train-autoregressive", "prose_cpu/autoregressive"),
    recipe("train-autoregressive", "prose_cpu/autoregressive_continued"),
    once_more("train-autoregressive", "autoregressive", "continued", "third", "--seed 7 --learning_rate 3e-3"),
)
PROSE_ENERGY = (
    *PROSE_CAUSAL,
    recipe("train-denoiser", "prose_cpu/denoiser"),
    recipe("train-denoiser", "prose_cpu/denoiser_continued"),
    once_more("train-denoiser", "denoiser", "continued", "third", "--seed 8 --learning_rate 3e-3"),
    once_more("train-denoiser", "denoiser", "third", "fourth", "--seed 9 --learning_rate 1.5e-3 --max_steps 1800"),
    recipe("train-drafts", "prose_cpu/drafts"),
    f"{recipe('train-drafts', 'prose_cpu/drafts')} --denoiser prose-cpu-drafts --output_dir prose-cpu-drafts-second "
    "--seed 10 --max_steps 1500",
    recipe("train-energy", "prose_cpu/energy"),
)

SHIPPED = {
    "edlm-books": of_prose("prose-cpu-energy", PROSE_ENERGY, generation=PLANNED),
    "edlm-books-ar": of_prose("prose-cpu-autoregressive-third", PROSE_CAUSAL, auto_class=AutoModelForCausalLM),
    "edlm-grammar": Shipped(
        "edlm-grammar",
        ("python recipes/grammar.py",),
        data="500 of the 1,440 sentences of a small language, `edlm_hf.demo.grammar.sentences()`.",
        limits="It knows 39 words, and no other sentences than those.",
    ),
}


def likelihoods(name: str, results: Path) -> dict[str, tuple[float, float]]:
    """Bits per character of a checkpoint with the standard error over texts, by what was measured."""
    found = {}
    for file in sorted([*results.glob("ar-*.json"), *results.glob("nelbo-*.json")]):
        run = json.loads(file.read_text())
        if run.get("model") != name:
            continue
        for metric, value in run["metrics"].items():
            bits = value["bits_per_character"]["value"]
            error = value["text_standard_error"] * bits / value["value"]
            found[f"{metric} of {run['data']}, {run['num_texts']} texts, bits/character"] = bits, error
    return found


def energy_readings(run: Path) -> dict[str, tuple[float, float | None]]:
    """What the training of an energy last said of it. Nothing for a run that trained none."""
    state = run / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.exists() else []
    evaluations = [row for row in history if "eval_nce_loss" in row]
    if not evaluations:
        return {}

    last = evaluations[-1]
    return {
        "NCE loss of 96 validation texts, nats (1.386: nothing known)": (
            last["eval_nce_loss"],
            last["eval_nce_loss_standard_error"],
        ),
        "effective sample size of k = 8 candidates, over all t": (last["eval_effective_sample_size"], None),
    }


def ship(name: str, runs: Path, results: Path, hardware: str) -> None:
    """Write the weights of a run in bfloat16, its tokenizer and its card into the package."""
    shipped = SHIPPED[name]
    run = runs / shipped.folder
    model: PreTrainedModel = shipped.auto_class.from_pretrained(run)
    model.card_facts = CardFacts(
        data=shipped.data,
        command="\n".join(shipped.commands),
        results=likelihoods(name, results) | energy_readings(run),
        measured=f"{hardware}. "
        "Likelihoods by `edlm evaluate` on the weights of this folder in bfloat16, ± the standard error over "
        "texts; `nelbo` is the bound of the denoiser, without the energy. What tells of the energy is of its training.",
        limits=shipped.limits,
        license="apache-2.0",
        language="en",
    )
    for setting, value in shipped.generation.items():
        setattr(model.generation_config, setting, value)

    target = ASSETS / name
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(run).save_pretrained(target)
    for file in target.glob("*.py"):
        file.unlink()
    write_config(target / "config.json")

    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {model.num_parameters():,} parameters, {size:,} bytes")


def write_config(file: Path) -> None:
    """Let a checkpoint compute in float32 unless asked otherwise: half precision is slow on many processors."""
    config = json.loads(file.read_text())
    for part in (config, config.get("denoiser_config"), config.get("energy_config")):
        if part is not None:
            part["dtype"] = "float32"
            part.pop("auto_map", None)
            part.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SHIPPED, help="Checkpoints.")
    parser.add_argument("--runs", type=Path, default=Path(), help="Where the recipes left their folders.")
    parser.add_argument("--results", type=Path, default=Path("results/prose"), help="Outputs of `edlm evaluate`.")
    parser.add_argument("--hardware", required=True, help="Where they were trained, date and seed.")
    args = parser.parse_args()
    for name in args.names:
        ship(name, args.runs, args.results, args.hardware)


if __name__ == "__main__":
    main()
