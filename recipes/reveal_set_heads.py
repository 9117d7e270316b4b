"""Heads that let the tokens of one planned step depend on each other: a study of what that can give.

    python recipes/reveal_set_heads.py OUTPUT --train books/train.parquet --dataset books/test.parquet --num-steps 4

A planned step reveals a set S at once, each of its tokens without the others. A head on the hidden states of the
frozen denoiser gives them a joint distribution, from left to right,

    q(x_S | x_t) = prod_j q(x_{s_j} | x_{s_1} .. x_{s_{j-1}}, x_t),    s_1 < s_2 < ...

It is normalised by itself: there are no candidates, and a text has an exact likelihood. It is an energy of the
reveal set, E = -log q(x_S | x_t) + log p_theta(x_S | x_t), whose weights need no estimate.

The heads differ by their seeds alone and learn from the same steps of `spaced` on the training texts, each text once.
OUTPUT gets their state, from which a command that is repeated goes on, and results.json: the gain over the
denoiser's independent tokens on the same paths of the same texts, head by head, beside that of as many more steps of
`spaced` as take the seconds of a head.
"""

import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
import typer
from reveal_set_head import Reader, RevealSetHead
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer

from edlm_hf.benchmarks.report import environment
from edlm_hf.benchmarks.text_sets import load_blocks
from edlm_hf.checkpoints import locate
from edlm_hf.data import blocks_for
from edlm_hf.evaluation import sampler_bound
from edlm_hf.evaluation.estimate import mean_estimate, ratio_estimate
from edlm_hf.files import write_atomically
from edlm_hf.hidden_secrets import hide_in_command
from edlm_hf.modeling.network_facts import longest_text

LOG_EVERY = 25
WARMUP = 50


def batches(blocks, size: int, first: int) -> Iterator[torch.LongTensor]:
    """Texts (size, L) of a corpus in an order of their own, from batch `first` on."""
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    for start in range(first * size, len(order) - size + 1, size):
        yield torch.tensor(blocks.select(order[start : start + size].tolist())["input_ids"][:])


class Study:
    """The heads of all seeds, trained side by side on the same steps."""

    def __init__(self, reader: Reader, length: int, seeds: int, max_steps: int, learning_rate: float):
        self.reader = reader
        self.max_steps = max_steps
        self.curve = []
        self.heads = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            self.heads.append(RevealSetHead(reader.denoiser.config.hidden_dim, length))

        # A seed draws the start of its head. Their texts are the same, since hidden states cost the most
        parameters = [{"params": head.parameters()} for head in self.heads]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)

    def rate(self, step: int) -> float:
        """The share of the learning rate: a line upwards, then a cosine to zero."""
        share = step / self.max_steps
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def train_step(self, texts: torch.LongTensor) -> list[float]:
        """Nats a token: of the denoiser and of every head, before the step, on texts that no head has seen."""
        num_tokens = texts[:, 1:].numel()
        sums = [0.0] * (1 + len(self.heads))
        for revealed in self.reader.paths(texts):
            with torch.autocast("cpu", torch.bfloat16):
                sums[0] += float(self.reader.nats(revealed.hidden, revealed).detach().sum())
                embeddings = self.reader.embeddings(revealed)
                for number, head in enumerate(self.heads, start=1):
                    loss = self.reader.nats(head(revealed, embeddings), revealed).sum()
                    (loss / num_tokens).backward()
                    sums[number] += float(loss.detach())

        # Each head by itself, as if it were trained alone
        for head in self.heads:
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return [value / num_tokens for value in sums]

    @torch.no_grad()
    def gains(self, texts: torch.LongTensor) -> list[torch.Tensor]:
        """Nats that every head saves, text by text: (R,) float64 each."""
        gains = [torch.zeros(len(texts), dtype=torch.float64) for _ in self.heads]
        for revealed in self.reader.paths(texts):
            rows = revealed.present.nonzero()[:, 0]
            embeddings = self.reader.embeddings(revealed)
            plain = self.reader.nats(revealed.hidden, revealed)
            for gain, head in zip(gains, self.heads, strict=True):
                saved = plain - self.reader.nats(head(revealed, embeddings), revealed)
                gain.index_add_(0, rows, saved.double())
        return gains

    def save(self, path: Path) -> None:
        """Write all that the training needs to go on, at once or not at all."""
        state = {
            "heads": [head.state_dict() for head in self.heads],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "curve": self.curve,
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(path, content.getvalue())

    def load(self, path: Path) -> None:
        """Take up the state that `save` has left."""
        state = torch.load(path, weights_only=True)
        for head, weights in zip(self.heads, state["heads"], strict=True):
            head.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.curve = state["curve"]


def train(study: Study, blocks, batch_size: int, path: Path, save_steps: int) -> None:
    """Train all heads up to `max_steps`, from where the file `path` says they are."""
    if path.exists():
        study.load(path)
    done = len(study.curve)
    for step, texts in enumerate(batches(blocks, batch_size, first=done), start=done + 1):
        if step > study.max_steps:
            return
        study.curve.append(study.train_step(texts))

        # The gain of the heads over the last steps, in nats a token
        if step % LOG_EVERY == 0:
            plain, *of_heads = mean_of(torch.tensor(study.curve[-LOG_EVERY:]))
            gains = ", ".join(f"{plain - nats:+.4f}" for nats in of_heads)
            print(f"step {step}: {plain:.3f} nats/token, less by the heads: {gains}", flush=True)
        if step % save_steps == 0 or step == study.max_steps:
            study.save(path)


def mean_of(part: torch.Tensor) -> list[float]:
    """Nats a token over some steps (n, 1 + seeds): of the denoiser and of every head."""
    return [round(value, 4) for value in part.mean(0).tolist()]


@torch.no_grad()
def calls_of_a_draw(study: Study, texts: torch.LongTensor, repeats: int = 3) -> float:
    """Calls of the denoiser that take as long as a head takes to draw texts (R, L), in all T steps together.

    The best of some repetitions of either, in turn. What a step takes beside its call is not counted.
    """
    reader = study.reader
    reveal_sets = list(reader.paths(texts))
    everywhere = torch.ones_like(texts, dtype=torch.bool)
    masked = torch.full_like(texts, reader.config.mask_token_id)
    timesteps = torch.zeros(len(texts))

    seconds = {"draw": [], "denoiser": []}
    for _ in range(repeats):
        start = perf_counter()
        for revealed in reveal_sets:
            reader.draw(study.heads[0], revealed, torch.rand(revealed.tokens.shape, dtype=torch.float64))
        middle = perf_counter()
        reader.denoiser(input_ids=masked, timesteps=timesteps, logits_at=everywhere)
        seconds["denoiser"].append(perf_counter() - middle)
        seconds["draw"].append(middle - start)
    return min(seconds["draw"]) / min(seconds["denoiser"])


def nats_of_spaced(model, rows: list[list[int]], num_steps: int, batch_size: int) -> torch.Tensor:
    """-log p of every text (R,) under `spaced`, without a head."""
    bound = sampler_bound(
        model,
        rows,
        sampler="spaced",
        score="entropy",
        num_steps=num_steps,
        num_candidates=1,
        batch_size=batch_size,
    )
    return torch.tensor(bound.sequence_nats)


def measure(study: Study, model, tokenizer, rows: list[list[int]], num_steps: int, batch_size: int) -> dict:
    """Gains over `spaced` with T steps in bits per character, ± over texts: of the heads, and of more steps.

    Of as many more steps as take the seconds of a draw by a head, rounded down and up, for one text and for a batch.
    They are paired on the same texts.
    """
    texts = torch.tensor(rows)
    characters = [len(tokenizer.decode(row[1:])) for row in rows]
    parts = [study.gains(part) for part in texts.split(batch_size)]
    bits_of_heads = [torch.cat(of_seed) / math.log(2) for of_seed in zip(*parts, strict=True)]
    bits_of_mean = torch.stack(bits_of_heads).mean(0)

    # Of each head, and of the mean over heads
    found = {f"head, seed {seed}": bits for seed, bits in enumerate(bits_of_heads)}
    found["heads"] = bits_of_mean

    # Of the steps that take as long
    calls = {f"batch {size}": calls_of_a_draw(study, texts[:size]) for size in (1, batch_size)}
    rounded = {rounding(of_draw) for of_draw in calls.values() for rounding in (math.floor, math.ceil)}
    plain = nats_of_spaced(model, rows, num_steps, batch_size)
    for more in sorted(rounded - {0}):
        saved = (plain - nats_of_spaced(model, rows, num_steps + more, batch_size)) / math.log(2)
        found[f"T = {num_steps + more}"] = saved
        found[f"heads - T = {num_steps + more}"] = bits_of_mean - saved

    bound = ratio_estimate(plain / math.log(2), characters, "bits/character")
    gains = {name: ratio_estimate(bits, characters, "bits/character") for name, bits in found.items()}
    of_seeds = [gains[f"head, seed {seed}"].value for seed in range(len(bits_of_heads))]
    return {
        "bound_without_a_head": bound.to_dict(),
        "calls_of_a_draw": calls,
        "gains": {name: estimate.to_dict() for name, estimate in gains.items()},
        "standard_error_over_seeds": mean_estimate(of_seeds, "bits/character").standard_error,
    }


def run(
    output: Path,
    train_file: str = typer.Option(..., "--train", help="The corpus that the heads learn from."),
    dataset: str = typer.Option(..., help="The corpus that they are measured on."),
    model: str = "edlm-books",
    num_steps: int = 4,
    seeds: int = 3,
    max_steps: int = 1500,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    save_steps: int = 50,
    num_texts: int = 256,
):
    """Train the heads of all seeds for one T, and measure them."""
    tokenizer = AutoTokenizer.from_pretrained(locate(model))
    composite = AutoModelForMaskedLM.from_pretrained(locate(model)).eval().requires_grad_(False)
    output.mkdir(parents=True, exist_ok=True)

    blocks = blocks_for(train_file, tokenizer, composite.config)
    reader = Reader(composite, num_steps)
    length = longest_text(composite.config)
    study = Study(reader, length, seeds, max_steps, learning_rate)
    train(study, blocks, batch_size, output / "state.pt", save_steps)

    test = load_blocks(dataset, tokenizer, composite.config, length)
    rows = test.rows(num_texts)
    command = " ".join(["python", *hide_in_command(sys.argv)])
    result = {
        "num_steps": num_steps,
        "training_steps": len(study.curve),
        "training_tokens": len(study.curve) * batch_size * (length - 1),
        "parameters_of_a_head": sum(p.numel() for p in study.heads[0].parameters()),
        "num_texts": len(rows),
        "dataset": dataset,
        "environment": environment(torch.device("cpu")) | {"command": command},
        **measure(study, composite, tokenizer, rows, num_steps, batch_size),
        "curve": [mean_of(part) for part in torch.tensor(study.curve).split(LOG_EVERY)],
    }
    write_atomically(output / "results.json", (json.dumps(result) + "\n").encode())
    for name, gain in result["gains"].items():
        print(f"{gain['value']:+.4f} ± {gain['standard_error']:.4f}   {name}")


if __name__ == "__main__":
    typer.run(run)
