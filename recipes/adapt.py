"""Adapt the energy of a checkpoint to another corpus by LoRA, and measure the sampler's bound there before and after.

    python recipes/adapt.py CORPUS FOLDER

CORPUS is a text or parquet file. The first nine tenths of its blocks are for training; the texts that are measured lie
evenly in the last twentieth, at a distance from those trained on. FOLDER gets the adapter, alone, and results.json; an
adapter that is there is measured as it is, a training that was cut short goes on from its last checkpoint. `--control`
is the folder of another adapter to be measured beside it: one that was trained as long on the text of the checkpoint
tells what is the corpus's part of the gain.

The adapter is an energy of what a step reveals (`energy_scope="revealed"`): its candidates differ in the tokens of one
step, not in all that is masked, so that their energies say more about which is real. The loss is `ranking` with
`max_denoising_steps`: the bound (m = 1) of the very sampler that is measured, with two candidates in place of its k.
The best energy is the same for any number of candidates, and two of them make the steadiest gradient for the cost. All
bounds are taken on the same noise, so that their differences are known better than they are.
"""

import json
import math
from pathlib import Path

import typer
from peft import PeftModel, get_peft_model
from transformers import AutoModelForMaskedLM, AutoTokenizer, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from edlm_hf.benchmarks.text_sets import TextSet
from edlm_hf.checkpoints import locate
from edlm_hf.data import blocks_for
from edlm_hf.evaluation import discrete_nelbo, sampler_bound
from edlm_hf.evaluation.estimate import ratio_estimate
from edlm_hf.training import EnergyArguments, EnergyTrainer, energy_lora, last_complete_checkpoint

CANDIDATES = 8


def bits(nats, tokens) -> dict[str, float]:
    """Bits per token, with the standard error over texts."""
    found = ratio_estimate(nats, tokens, "nats/token")
    return {"value": found.value / math.log(2), "standard_error": found.standard_error / math.log(2)}


def difference(nats, others) -> list[float]:
    return [x - y for x, y in zip(nats, others, strict=True)]


def of_reveal_set(model: str):
    """The checkpoint, with its energy as one of what a step reveals; a user of the adapter loads the same."""
    return AutoModelForMaskedLM.from_pretrained(locate(model), energy_scope="revealed")


def training_steps(folder: Path) -> int | None:
    """How long an adapter was trained, where its folder tells: it may be somebody else's, so only JSON is read."""
    path = folder / TRAINER_STATE_NAME
    steps = json.loads(path.read_text(encoding="utf-8")).get("global_step") if path.is_file() else None
    return steps if isinstance(steps, int) else None


def adapt(
    corpus: Path,
    folder: Path,
    model: str = "edlm-books",
    rank: int = 16,
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    save_steps: int = 100,
    num_texts: int = 128,
    denoising_steps: int = 16,
    inner_copies: str = "1,16",
    seed: int = 0,
    control: Path | None = None,
):
    tokenizer = AutoTokenizer.from_pretrained(locate(model))
    base = AutoModelForMaskedLM.from_pretrained(locate(model))
    blocks = blocks_for(str(corpus), tokenizer, base.config)
    train = blocks.select(range(len(blocks) * 9 // 10)).with_format("numpy")
    held_out = blocks.select(range(len(blocks) * 19 // 20, len(blocks)))
    ids = TextSet(corpus.stem, held_out).rows(num_texts)

    if not (folder / "adapter_model.safetensors").exists():
        lora = energy_lora(r=rank, alpha=2 * rank)
        set_seed(seed)  # the adapter starts at random
        args = EnergyArguments(
            str(folder), nce_loss="ranking", num_negatives=1, max_denoising_steps=denoising_steps,
            max_steps=steps, learning_rate=learning_rate, per_device_train_batch_size=batch_size,
            lr_scheduler_type="cosine", warmup_steps=steps // 10, ema_decay=0.99, bf16=True, use_cpu=True,
            logging_steps=10, save_steps=save_steps, report_to="none", seed=seed, attn_implementation="eager",
        )  # fmt: skip
        trainer = EnergyTrainer(
            get_peft_model(of_reveal_set(model), lora), args, train_dataset=train, processing_class=tokenizer
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        trainer.save_state()
        trainer.save_model()

    judges = {"the checkpoint": base}
    for name, of in {"the adapter": folder, "the control": control}.items():
        if of is not None:
            judges[name] = PeftModel.from_pretrained(of_reveal_set(model), of).base_model.model
    options = {"num_steps": denoising_steps, "num_samples": 1, "seed": seed, "progress_bar": True}
    denoiser = discrete_nelbo(base, ids, **options)
    tokens = denoiser.sequence_tokens
    bounds = {"denoiser, no energy": bits(denoiser.sequence_nats, tokens)}
    for m in map(int, inner_copies.split(",")):
        options |= {"num_candidates": CANDIDATES, "inner_copies": m}
        found = {name: sampler_bound(judge, ids, **options).sequence_nats for name, judge in judges.items()}
        bounds |= {f"{name}, m = {m}": bits(nats, tokens) for name, nats in found.items()}
        adapted = found.pop("the adapter")
        for name, nats in (found | {"the denoiser": denoiser.sequence_nats}).items():
            bounds[f"the adapter less {name}, m = {m}"] = bits(difference(adapted, nats), tokens)
    result = {
        "corpus": corpus.name,
        "num_texts": len(ids),
        "steps_of_sampler": denoising_steps,
        "candidates": CANDIDATES,
        "training_steps": training_steps(folder),
        "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size,
        "bits_per_token": bounds,
    }
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(adapt)
