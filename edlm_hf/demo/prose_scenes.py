"""The scenes of English text: the same denoiser with ancestral steps, with planned ones, and with an energy."""

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.checkpoints import checkpoint
from edlm_hf.loading import load_causal, load_denoiser, load_tokenizer
from edlm_hf.modeling.modeling_edlm import EDLMForMaskedDiffusion
from edlm_hf.streaming import TerminalDiffusionStreamer
from edlm_hf.terminal import visible

PROSE = "edlm-books"
ANCESTRAL_STEPS = 128
# Below 1 likely tokens become likelier: more of the words are words (docs/results.md)
TEMPERATURE = 0.9

# "Twenty Thousand Leagues Under the Sea", a book that the models were not trained on
PARAGRAPH = (
    "The next day, the 20th of February, I awoke very late: the fatigues of the previous night had prolonged my sleep "
    "until eleven o'clock. I dressed quickly, and hastened to find the course the Nautilus was taking."
)
HIDDEN_WORDS = (" late", " night", " sleep", " quickly", " course")


@dataclass(frozen=True)
class Prose:
    """The denoiser alone, the same with the autoregressive energy, and their tokenizer."""

    alone: PreTrainedModel
    with_energy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Arm:
    """One way to sample: its title, the network, and what `generate()` is given."""

    title: str
    model: PreTrainedModel
    settings: dict


def load_prose() -> Prose:
    """Load the models of English text that ship."""
    tokenizer = load_tokenizer(checkpoint(PROSE))
    alone = load_denoiser(checkpoint(PROSE), tokenizer)
    causal = load_causal(checkpoint(f"{PROSE}-ar"))

    # One denoiser in both, so that its weights are in memory once
    with_energy = EDLMForMaskedDiffusion.from_components(
        alone,
        causal,
        energy_type="ar",
        tokenizer=tokenizer,
    )
    return Prose(alone, with_energy, tokenizer)


def arms_of(prose: Prose, steps: int, candidates: int) -> list[Arm]:
    """The three ways that every scene compares."""
    # Each differs from the one before in one thing: the rule and T, then the energy
    common = {"num_candidates": 1, "temperature": TEMPERATURE}
    ancestral = {
        **common,
        "sampler": "ancestral",
        "max_denoising_steps": ANCESTRAL_STEPS,
    }
    planned = {
        **common,
        "sampler": "spaced",
        "max_denoising_steps": steps,
    }
    with_energy = {**planned, "num_candidates": candidates}
    return [
        Arm("ancestral steps", prose.alone, ancestral),
        Arm("planned steps", prose.alone, planned),
        Arm(f"planned steps, energy of {candidates}", prose.with_energy, with_energy),
    ]


def show_continuation(
    console: Console,
    prose: Prose,
    prompt: str,
    new_tokens: int,
    steps: int,
    candidates: int,
    seed: int,
) -> list[dict]:
    """Continue the prompt in every way. Returns the texts and their cost."""
    console.print(f"\n[bold]1. A prompt continued[/bold], at temperature {TEMPERATURE}")

    # (1, P + N): the prompt, and a mask for every new token
    ids = prose.tokenizer(prompt, return_tensors="pt").input_ids
    mask_token_id = prose.tokenizer.mask_token_id
    canvas = torch.nn.functional.pad(ids, (0, new_tokens), value=mask_token_id)

    arms = arms_of(prose, steps, candidates)
    return [show_arm(console, arm, prose.tokenizer, canvas, seed) for arm in arms]


def show_infilling(console: Console, prose: Prose, steps: int, candidates: int, seed: int) -> list[dict]:
    """Fill the holes of a paragraph in every way. Returns the texts and their cost."""
    console.print(f"\n[bold]2. Five hidden words of a paragraph[/bold], at temperature {TEMPERATURE}")
    canvas = hide(PARAGRAPH, HIDDEN_WORDS, prose.tokenizer)
    hidden = ", ".join(word.strip() for word in HIDDEN_WORDS)
    console.print(f"  hidden: {hidden}", style="dim")

    arms = arms_of(prose, steps, candidates)
    return [show_arm(console, arm, prose.tokenizer, canvas, seed) for arm in arms]


def hide(text: str, words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> torch.LongTensor:
    """The tokens of a text (1, L) with a mask for every token of some of its words, given in their order."""
    # An empty text is the start token alone
    ids = tokenizer("").input_ids
    for word in words:
        before, _, text = text.partition(word)
        num_masks = len(tokenizer(word, add_special_tokens=False).input_ids)
        ids += tokenizer(before, add_special_tokens=False).input_ids
        ids += [tokenizer.mask_token_id] * num_masks
    ids += tokenizer(text, add_special_tokens=False).input_ids
    return torch.tensor([ids])


def show_arm(
    console: Console,
    arm: Arm,
    tokenizer: PreTrainedTokenizerBase,
    canvas: torch.LongTensor,
    seed: int,
) -> dict:
    """Fill the masks of a canvas (1, L), on a terminal before the reader's eyes, and print text and cost."""
    # 1. Fill the masks. Nothing moves in a pipe or with --json
    streamer = None
    if console.is_terminal and not console.quiet:
        streamer = TerminalDiffusionStreamer(tokenizer, console=console, keep=False)

    began = time.monotonic()
    out = arm.model.generate(
        canvas,
        attention_mask=torch.ones_like(canvas),
        generator=torch.Generator().manual_seed(seed),
        return_dict_in_generate=True,
        streamer=streamer,
        **arm.settings,
    )
    seconds = time.monotonic() - began

    # 2. The cost. A call of the energy weighs all candidates of a step
    calls = int(out.num_denoiser_calls.sum())
    energy_calls = int(out.num_energy_calls.sum())
    cost = f"{calls} calls, {seconds:.1f} s"
    if energy_calls:
        cost = f"{calls} + {energy_calls} calls, {seconds:.1f} s"

    # 3. The text, with the tokens that took the places of masks in green
    console.print(Text.assemble("\n  ", (arm.title, "bold cyan"), f"  {cost}"))
    filled = canvas[0] == tokenizer.mask_token_id
    text = marked(out.sequences[0], filled, tokenizer)
    console.print(Padding(text, (0, 2, 0, 4)))
    return {
        "sampler": arm.title,
        "settings": arm.settings,
        "seconds": round(seconds, 3),
        "denoiser_calls": calls,
        "energy_calls": energy_calls,
        "text": tokenizer.decode(out.sequences[0], skip_special_tokens=True),
    }


def marked(ids: torch.LongTensor, filled: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of tokens (L,), with those that were filled in green."""
    # Without the start token, (L,)
    special = torch.tensor(tokenizer.all_special_ids)
    is_text = ~torch.isin(ids, special)
    ids = ids[is_text]
    filled = filled[is_text]

    # Runs of given and of filled tokens. A run is decoded as a whole, for letters of several tokens
    border = (filled[1:] != filled[:-1]).nonzero().flatten() + 1
    runs = ids.tensor_split(border)
    filled_runs = filled.tensor_split(border)

    text = Text()
    for run, is_filled in zip(runs, filled_runs, strict=True):
        style = "green" if len(run) and is_filled[0] else "dim"
        text.append(visible(tokenizer.decode(run)), style=style)
    return text
