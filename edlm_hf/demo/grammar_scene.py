"""The scene of the small language: shares of right sentences without an energy and with one."""

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.checkpoints import checkpoint
from edlm_hf.demo.grammar import NUM_WORDS, sentences
from edlm_hf.loading import load_with_tokenizer

GRAMMAR = "edlm-grammar"
NUM_SENTENCES = 400
NUM_SHOWN = 3

# With holes: the persons of the sentence have to agree with what stands between them
PATTERN = "[MASK] [MASK] reads [MASK] letter and [MASK] in [MASK] garden"


def show_grammar(console: Console, candidates: int, seed: int) -> list[dict]:
    """Draw sentences without the energy and with it. Returns the shares of right ones.

    Args:
        candidates: k of the sampler with the energy.
    """
    with console.status("drawing 1,600 sentences of a small language"):
        model, tokenizer = load_with_tokenizer(checkpoint(GRAMMAR))
        tasks = {
            "whole sentences, T = 4": (start_of(tokenizer), NUM_WORDS, 4),
            "five holes, T = 2": (with_holes(tokenizer), None, 2),
        }
        found = [
            measure(model, tokenizer, task, *setting, num_candidates, seed)
            for task, setting in tasks.items()
            for num_candidates in (1, candidates)
        ]

    language = sentences()
    console.print(f"\n[bold]3. A language of {len(language):,} sentences[/bold], where six words must agree")
    for result in found[:2]:
        console.print(f"\n  [bold cyan]{name_of(result['candidates'])}[/bold cyan], {result['task']}")
        for text in result["texts"][:NUM_SHOWN]:
            is_right = text in language
            sign, style = ("✓", "green") if is_right else ("✗", "red")
            console.print(f"    {sign} {text}", style=style, markup=False)

    console.print()
    console.print(table_of(found))
    return found


def name_of(candidates: int) -> str:
    """The name of a sampler."""
    return "denoiser alone" if candidates == 1 else f"energy of {candidates} candidates"


def start_of(tokenizer: PreTrainedTokenizerBase) -> torch.LongTensor:
    """The start token, (1, 1)."""
    return torch.tensor([[tokenizer.bos_token_id]])


def with_holes(tokenizer: PreTrainedTokenizerBase) -> torch.LongTensor:
    """The start token and the pattern, (1, 11)."""
    words = tokenizer(PATTERN, return_tensors="pt").input_ids
    return torch.cat([start_of(tokenizer), words], dim=1)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    canvas: torch.LongTensor,
    new_tokens: int | None,
    steps: int,
    candidates: int,
    seed: int,
) -> dict:
    """The share of right sentences among `NUM_SENTENCES`, with its standard error."""
    rows = model.generate(
        canvas.repeat(NUM_SENTENCES, 1),
        max_new_tokens=new_tokens,
        sampler="ancestral",
        max_denoising_steps=steps,
        num_candidates=candidates,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)

    language = set(sentences())
    share = sum(text in language for text in texts) / len(texts)
    error = (share * (1 - share) / len(texts)) ** 0.5
    return {"task": task, "candidates": candidates, "right": share, "standard_error": error, "texts": texts}


def table_of(found: list[dict]) -> Table:
    """The shares, a row for every task."""
    table = Table(title=f"right sentences of {NUM_SENTENCES}", title_justify="left")
    table.add_column("task")
    for candidates in dict.fromkeys(result["candidates"] for result in found):
        table.add_column(name_of(candidates), justify="right")

    for task in dict.fromkeys(result["task"] for result in found):
        row = [result for result in found if result["task"] == task]
        table.add_row(task, *(f"{result['right']:.3f} ± {result['standard_error']:.3f}" for result in row))
    return table
