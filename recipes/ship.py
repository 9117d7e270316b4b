"""Make the checkpoints that ship out of what the recipes leave: half the bytes, no code (the package has it), the card.

    python recipes/ship.py RUNS RESULTS

RUNS holds books-cpu-energy, whose denoiser is in it, and books-cpu-autoregressive; RESULTS the output of `edlm evaluate
--json` on edlm-books and edlm-books-ar, `nelbo-*.json` and `ar-*.json`, for the cards. Run it once for the weights,
measure those, and run it again for the cards.
"""

import json
import math
import sys
from pathlib import Path

import torch
import transformers

import edlm_hf
from edlm_hf.cards import CardFacts
from edlm_hf.checkpoints import ASSETS

LIMITS = (
    "Trained for less than four hours on two CPU cores: it shows what the method does and is no good writer. It knows "
    "26 letters and the space, the English of books from 1850 to 1928, and their opinions."
)
DATA = (
    "506 public-domain books, first published 1850-1928, of the collection mlschmitt/classic-books-markdown (nine "
    "others are the validation and test splits), in the alphabet of text8: lower case, digits spelled out, everything "
    "else a space."
)


def facts(recipes: dict[str, str], runs: Path, results: Path, name: str) -> CardFacts:
    commands = [
        f"OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 $(which edlm) {command} recipes/books_cpu/{recipe}.yaml"
        for recipe, command in recipes.items()
    ]
    measured = {}
    for file in sorted([*results.glob("ar-*.json"), *results.glob("nelbo-*.json")]):
        found = json.loads(file.read_text())
        if found.get("model") == name:
            for metric, value in found["metrics"].items():
                bits = value["bits_per_character"]
                row = f"{metric} of {found['data']}, {found['num_texts']} texts, bits/character"
                measured[row] = bits["value"], value["text_standard_error"] / math.log(2)
    if "energy" in recipes:
        log = json.loads((runs / "books-cpu-energy" / "trainer_state.json").read_text())["log_history"]
        last = [row for row in log if "eval_nce_loss" in row][-1]
        row = "NCE loss of 96 validation texts, nats (1.386: nothing known)"
        measured[row] = last["eval_nce_loss"], last["eval_nce_loss_standard_error"]
        measured["effective sample size of k = 8 candidates, over all t"] = last["eval_effective_sample_size"], None
    return CardFacts(
        data=DATA,
        command="\n".join(commands),
        results=measured,
        measured="Two AMD EPYC cores, 2026-11-25, seed 0. "
        "Likelihoods by `edlm evaluate` on the weights of this folder in bfloat16, ± the standard error over "
        "texts; `nelbo` is the bound of the denoiser, without the energy. What tells of the energy is of its training.",
        limits=LIMITS,
        license="apache-2.0",
        language="en",
    )


def ship(model, folder: Path, name: str, recipes: dict[str, str], results: Path) -> None:
    model.card_facts = facts(recipes, folder.parent, results, name)
    target = ASSETS / name
    model.to(torch.bfloat16).save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    for file in target.glob("*.py"):
        file.unlink()
    # They compute in float32 unless asked otherwise: not every processor is fast in half precision.
    config = json.loads((target / "config.json").read_text())
    for part in (config, config.get("denoiser_config"), config.get("energy_config")):
        if part is not None:
            part["dtype"] = "float32"
            part.pop("auto_map", None)
            part.pop("_name_or_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {model.num_parameters():,} parameters, {size:,} bytes")


if __name__ == "__main__":
    runs, results = map(Path, sys.argv[1:])
    energy, causal = runs / "books-cpu-energy", runs / "books-cpu-autoregressive"
    first = {"autoregressive": "train-autoregressive"}
    later = {"denoiser": "train-denoiser", "denoiser_continued": "train-denoiser", "energy": "train-energy"}
    ship(edlm_hf.EDLMForMaskedDiffusion.from_pretrained(energy), energy, "edlm-books", first | later, results)
    ship(edlm_hf.MDLMForCausalLM.from_pretrained(causal), causal, "edlm-books-ar", first, results)
