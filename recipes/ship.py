"""Make the checkpoints that ship out of what the recipes leave: half the bytes, no code (the package has it), the card.

    python recipes/ship.py edlm-prose edlm-prose-ar --runs RUNS --results RESULTS

RUNS holds the folders of the recipes. RESULTS holds the output of `edlm evaluate --json` on the
checkpoints that ship, for the cards. So run it once for the weights, measure those, and run it again
for the cards.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import edlm_hf  # noqa: F401  (registers the models)
from edlm_hf.cards import CardFacts
from edlm_hf.checkpoints import ASSETS

BOOKS = (
    "506 public-domain books, first published 1850-1928, of the collection mlschmitt/classic-books-markdown (nine "
    "others are the validation and test splits)"
)
LETTERS = BOOKS + ", in the alphabet of text8: lower case, digits spelled out, everything else a space."
PROSE = BOOKS + ", as they are printed."

TRAIN = "OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 $(which edlm)"


@dataclass(frozen=True)
class Shipped:
    """A checkpoint that ships.

    Args:
        folder: of the run that made it, below RUNS.
        auto_class: that loads it.
        commands: that repeat it.
        data: what it was trained on.
        limits: what it cannot do.
        hardware: it was trained on.
        generation: settings of `generate()` that it brings.
    """

    folder: str
    auto_class: type
    commands: tuple[str, ...]
    data: str
    limits: str
    hardware: str
    generation: dict | None = None


def recipe(command: str, name: str) -> str:
    """The command of a recipe on two processes."""
    return f"{TRAIN} {command} recipes/{name}.yaml"


LETTERS_CAUSAL = (recipe("train-autoregressive", "books_cpu/autoregressive"),)
LETTERS_ENERGY = (
    *LETTERS_CAUSAL,
    recipe("train-denoiser", "books_cpu/denoiser"),
    recipe("train-denoiser", "books_cpu/denoiser_continued"),
    recipe("train-energy", "books_cpu/energy"),
)
LETTERS_LIMITS = (
    "Trained for less than four hours on two CPU cores: it shows what the method does and is no good writer. It knows "
    "26 letters and the space, the English of books from 1850 to 1928, and their opinions."
)

PROSE_CAUSAL = ("python recipes/tokenizer.py", recipe("train-autoregressive", "prose_cpu/autoregressive"))
PROSE_DENOISER = (*PROSE_CAUSAL, recipe("train-denoiser", "prose_cpu/denoiser"))
PROSE_LIMITS = (
    "Small, and trained for about an hour on two CPU cores: it spells, and keeps a sentence together, but it does not "
    "know what it says. It knows the English of books from 1850 to 1928, and their opinions."
)

SHIPPED = {
    "edlm-books": Shipped(
        folder="books-cpu-energy",
        auto_class=AutoModelForMaskedLM,
        commands=LETTERS_ENERGY,
        data=LETTERS,
        limits=LETTERS_LIMITS,
        hardware="Two AMD EPYC cores, 2026-11-25, seed 0",
        generation={"sampler": "spaced", "max_denoising_steps": 16},
    ),
    "edlm-books-ar": Shipped(
        folder="books-cpu-autoregressive",
        auto_class=AutoModelForCausalLM,
        commands=LETTERS_CAUSAL,
        data=LETTERS,
        limits=LETTERS_LIMITS,
        hardware="Two AMD EPYC cores, 2026-11-25, seed 0",
    ),
    "edlm-prose": Shipped(
        folder="prose-cpu-denoiser",
        auto_class=AutoModelForMaskedLM,
        commands=PROSE_DENOISER,
        data=PROSE,
        limits=PROSE_LIMITS,
        hardware="Two AMD EPYC cores without bfloat16, 2026-11-27, seed 0",
        generation={"sampler": "spaced", "max_denoising_steps": 16},
    ),
    "edlm-prose-ar": Shipped(
        folder="prose-cpu-autoregressive",
        auto_class=AutoModelForCausalLM,
        commands=PROSE_CAUSAL,
        data=PROSE,
        limits=PROSE_LIMITS,
        hardware="Two AMD EPYC cores without bfloat16, 2026-11-27, seed 0",
    ),
    "edlm-grammar": Shipped(
        folder="edlm-grammar",
        auto_class=AutoModelForMaskedLM,
        commands=("python recipes/grammar.py",),
        data="500 of the 1,440 sentences of a small language, `edlm_hf.demo.grammar.sentences()`.",
        limits="It knows 39 words, and no other sentences than those.",
        hardware="One AMD EPYC core, 2026-11-26, seed 0",
    ),
}


def measurements(name: str, results: Path) -> dict[str, tuple[float, float]]:
    """Bits per character of a checkpoint with the standard error over texts, by what was measured."""
    found = {}
    for file in sorted(results.glob("*.json")):
        run = json.loads(file.read_text())
        if not isinstance(run, dict) or run.get("model") != name:
            continue
        for metric, value in run["metrics"].items():
            bits = value["bits_per_character"]["value"]
            error = value["text_standard_error"] / math.log(2)
            found[f"{metric} of {run['data']}, {run['num_texts']} texts, bits/character"] = bits, error
    return found


def ship(name: str, runs: Path, results: Path) -> None:
    """Write the weights of a run in bfloat16, its tokenizer and its card into the package."""
    shipped = SHIPPED[name]
    model: PreTrainedModel = shipped.auto_class.from_pretrained(runs / shipped.folder)
    model.card_facts = CardFacts(
        data=shipped.data,
        command="\n".join(shipped.commands),
        results=measurements(name, results),
        measured=f"{shipped.hardware}. Likelihoods by `edlm evaluate` on the weights of this folder in bfloat16, ± the "
        "standard error over texts; `nelbo` is the bound of the denoiser, without an energy.",
        limits=shipped.limits,
        license="apache-2.0",
        language="en",
    )
    for setting, value in (shipped.generation or {}).items():
        setattr(model.generation_config, setting, value)

    target = ASSETS / name
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(runs / shipped.folder).save_pretrained(target)
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
    parser.add_argument("--results", type=Path, default=Path("results"), help="Outputs of `edlm evaluate --json`.")
    args = parser.parse_args()
    for name in args.names:
        ship(name, args.runs, args.results)


if __name__ == "__main__":
    main()
