"""The scene of the small language: shares of right sentences without an energy and with one."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.checkpoints import checkpoint
from edlm_hf.demo.grammar import NUM_WORDS, sentences
from edlm_hf.loading import load_with_tokenizer

GRAMMAR = "edlm-grammar"
# A share of one half has the standard error 0.025
NUM_SENTENCES = 400
NUM_SHOWN = 3


@dataclass(frozen=True)
class Task:
    """What is drawn: masks in a text, or after it, in T steps."""

    title: str
    text: str
    new_tokens: int | None
    steps: int


# With holes the persons of the sentence have to agree with what stands between them
TASKS = (
    Task("whole sentences, T = 4", "<s>", NUM_WORDS, 4),
    Task("five holes, T = 2", "<s> [MASK] [MASK] reads [MASK] letter and [MASK] in [MASK] garden", None, 2),
)


def show_grammar(console: Console, candidates: int, seed: int) -> list[dict]:
    """Draw sentences without the energy and with it. Returns the shares of right ones.

    Args:
        candidates: k of the sampler with the energy.
    """
    # 1. Every task without the energy (k = 1) and with it, from the same seed
    language = set(sentences())
    with console.status("drawing sentences of a small language"):
        model, tokenizer = load_with_tokenizer(checkpoint(GRAMMAR))
        found = []
        for task in TASKS:
            for num_candidates in (1, candidates):
                texts = draw(model, tokenizer, task, num_candidates, seed)

                # A share p of n independent sentences has the variance p (1 - p) / n
                share = sum(text in language for text in texts) / len(texts)
                variance = share * (1 - share) / len(texts)
                result = {
                    "task": task.title,
                    "candidates": num_candidates,
                    "texts": texts,
                    "right": share,
                    "standard_error": variance**0.5,
                }
                found.append(result)

    # 2. A few whole sentences of both, the right ones marked
    console.print(f"\n[bold]3. A language of {len(language):,} sentences[/bold], where six words must agree")
    for result in found[:2]:
        console.print(f"\n  [bold cyan]{name_of(result['candidates'])}[/bold cyan], {result['task']}")
        for text in result["texts"][:NUM_SHOWN]:
            is_right = text in language
            sign = "✓" if is_right else "✗"
            style = "green" if is_right else "red"
            console.print(f"    {sign} {text}", style=style, markup=False)

    # 3. The shares
    console.print()
    console.print(table_of(found))
    return found


def name_of(candidates: int) -> str:
    """The name of a sampler."""
    return "denoiser alone" if candidates == 1 else f"energy of {candidates} candidates"


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    candidates: int,
    seed: int,
) -> list[str]:
    """`NUM_SENTENCES` texts."""
    # (1, P) -> (400, P), of which nothing is padding
    ids = tokenizer(task.text, return_tensors="pt").input_ids
    rows_of_ids = ids.repeat(NUM_SENTENCES, 1)
    rows = model.generate(
        rows_of_ids,
        attention_mask=torch.ones_like(rows_of_ids),
        max_new_tokens=task.new_tokens,
        sampler="ancestral",
        max_denoising_steps=task.steps,
        num_candidates=candidates,
        generator=torch.Generator().manual_seed(seed),
    )
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def table_of(found: list[dict]) -> Table:
    """The shares, a row for every task."""
    table = Table(title=f"right sentences of {NUM_SENTENCES}", title_justify="left")
    table.add_column("task")

    # dict.fromkeys keeps the order in which tasks and samplers were run
    for candidates in dict.fromkeys(result["candidates"] for result in found):
        table.add_column(name_of(candidates), justify="right")

    for task in dict.fromkeys(result["task"] for result in found):
        row = [result for result in found if result["task"] == task]
        cells = [f"{result['right']:.3f} ± {result['standard_error']:.3f}" for result in row]
        table.add_row(task, *cells)
    return table
