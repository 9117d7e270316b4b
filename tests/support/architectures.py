"""Which networks of transformers are right as denoiser and as energy: docs/architectures.md is made of it.

    python architectures.py FOUND.json          # tries every type of model, without a network
    python architectures.py FOUND.json --page   # and writes the page, as `make architectures` does
    python architectures.py FOUND.json --only jamba zamba

A network of each type has random weights and tiny sizes (tiny_networks.py). It is compared with itself: a row alone is
what the row is beside others, and an energy is what the plain log-likelihood says.
"""

import argparse
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from autoregressive_energies import by_definition, shapes_read  # noqa: E402
from published import tiny_denoiser  # noqa: E402
from tiny_networks import LENGTH, VOCABULARY, tiny_config, tiny_network  # noqa: E402
from torch import nn  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from edlm_hf import EDLMForMaskedDiffusion  # noqa: E402
from edlm_hf.evaluation import nelbo  # noqa: E402
from edlm_hf.modeling.network_probes import sees_padding  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
INTRODUCTION = """# Architectures

Which language models of transformers can be the denoiser or the autoregressive energy of an EDLM. Every type that
transformers lists under `AutoModelForMaskedLM` and `AutoModelForCausalLM` was built with tiny sizes and random weights,
and tried; this page is written from the results (`make architectures`, with transformers {version}).

- **right**: of a denoiser, a row beside others has the logits, the greedy tokens and the bound that it has alone. Of an
  energy, log p_theta - log p_AR is what the plain log-likelihood of whole texts says, with and without a prompt that
  the candidates have in common, and for padded rows.
- *rows without padding*: padding changes the logits of such a network though it is masked, so that rows of different
  lengths run without it.
- *prompt read once*: candidates share the key/value cache of their prompt. Models that keep something else (recurrent
  states, convolutions, short windows of attention) read every candidate from its beginning, which is as exact.
- **refused**: by a `ValueError`, which says why.
- **not tried**: no such network was made at tiny sizes, or it does not run on text alone, or its tokens do not mix. The
  reason is the message of transformers or of the test.
"""
MASK = VOCABULARY - 1
SHORT, LONG = 26, 40  # tokens of two texts
PROMPT = 24  # tokens that all candidates have in common

# Types of this package, which have tests of their own
OURS = ("edlm", "mdlm")

# Attention beside recurrent states or convolutions, whose caches are not keys and values alone
HYBRIDS = (
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_next",
    "recurrent_gemma",
    "zamba",
    "zamba2",
)

# Denoisers in which padding takes part though it is masked
PADDING_BLIND = ("convbert", "fnet", "funnel", "mobilebert", "mra", "nystromformer", "reformer", "yoso")


@dataclass(frozen=True)
class Result:
    """What a type of model did in one part.

    Args:
        outcome: `right`, `refused` (by a ValueError of ours), `wrong`, or `not tried` where transformers does not make
            or run such a network alone.
        note: the reason, or how it was run.
    """

    outcome: str
    note: str = ""


class Wrong(Exception):
    """A result differs from what it is by definition."""


def try_masked(model_class: type[nn.Module]) -> dict[str, Result]:
    """A masked language model as the denoiser."""
    return {"denoiser": result_of(lambda: build(model_class), check_denoiser)}


def try_causal(model_class: type[nn.Module]) -> dict[str, Result]:
    """A causal language model as the energy, and as the denoiser without its causal mask."""
    return {
        "energy": result_of(lambda: build(model_class, is_decoder=True, causal=True), check_energy),
        "denoiser": result_of(lambda: build_bidirectional(model_class), check_denoiser),
    }


def build(model_class: type[nn.Module], **changes) -> nn.Module:
    """A tiny network of a class, with `changes` of its configuration."""
    return tiny_network(model_class, tiny_config(model_class.config_class, **changes))


def build_bidirectional(model_class: type[nn.Module]) -> nn.Module:
    """A tiny decoder whose configuration says that it is not causal."""
    config = tiny_config(model_class.config_class, is_decoder=False)
    for part in (config, config.get_text_config()):
        part.is_causal = False
    return tiny_network(model_class, config)


def result_of(make: Callable[[], nn.Module], check: Callable[[nn.Module], str]) -> Result:
    """The result of a check of a network, which returns the note."""
    try:
        network = make()
        check_runs(network)
    except Exception as error:
        return Result("not tried", shortened(error))

    try:
        return Result("right", check(network))
    except ValueError as error:
        return Result("refused", shortened(error))
    except Exception as error:
        return Result("wrong", shortened(error))


@torch.no_grad()
def check_runs(network: nn.Module) -> None:
    """Raise what the network raises for texts alone, and ValueError for logits that say nothing."""
    ids, _ = texts()
    changed = ids.clone()
    changed[:, LONG // 2] = (ids[:, LONG // 2] + 1) % MASK
    logits, of_changed = (network(input_ids=x, return_dict=True).logits for x in (ids, changed))
    if not logits.isfinite().all():
        raise ValueError("logits that are not finite")

    # The tokens beside the changed one
    differs = (logits != of_changed).any(-1)
    if not differs[:, LONG // 2 - 1].any() and not differs[:, LONG // 2 + 1].any():
        raise ValueError("a token changes the logits at no other position")


def shortened(error: Exception) -> str:
    """The first sentence of a message, on one line, with its type if it is not a ValueError of ours."""
    text = " ".join(str(error).split())
    sentence = re.split(r"(?<=[a-z)\]])[.:;] ", text)[0][:160].rstrip(".")
    return sentence if type(error) in (ValueError, Wrong) else f"{type(error).__name__}: {sentence}"


# -- Denoisers


def check_denoiser(network: nn.Module) -> str:
    """Compare rows beside others with the same rows alone.

    Returns:
        How rows of different lengths are run.
    """
    model = EDLMForMaskedDiffusion.from_components(network, mask_token_id=MASK)
    check_sees_both_sides(model)
    check_logits(model)
    for left in (True, False):
        check_samples(model, left)
    check_bounds(model)

    ids, real = padded(left=False)
    blind = sees_padding(network, lambda *inputs: model(*inputs).logits, ids, real)
    return "rows without padding" if blind else ""


@torch.no_grad()
def check_sees_both_sides(model: EDLMForMaskedDiffusion) -> None:
    """The tokens on both sides of a position change its logits: attention may be local."""
    ids, _ = texts()
    middle = LONG // 2
    logits = model(ids).logits[:, middle]
    for position in (middle - 1, middle + 1):
        changed = ids.clone()
        changed[:, position] = (ids[:, position] + 1) % MASK
        if torch.equal(model(changed).logits[:, middle], logits):
            raise Wrong(f"the token at {position} does not change the logits at {middle}")


@torch.no_grad()
def check_logits(model: EDLMForMaskedDiffusion) -> None:
    """Logits of padded rows are those of the rows alone."""
    ids, real = padded(left=False)
    logits = model.text_logits(ids, real)
    for row in range(len(ids)):
        text = ids[row : row + 1, real[row].bool()]
        compare("logits", logits[row : row + 1, : text.shape[1]], model.text_logits(text))


def check_samples(model: EDLMForMaskedDiffusion, left: bool) -> None:
    """Greedy continuations of padded prompts are those of the prompts alone."""
    ids, real = padded(left)
    options = {"max_new_tokens": 6, "max_denoising_steps": 3, "do_sample": False}
    together = model.generate(ids, attention_mask=real, **options)[:, -6:]
    for row in range(len(ids)):
        alone = model.generate(ids[row : row + 1, real[row].bool()], **options)[:, -6:]
        if not torch.equal(together[row : row + 1], alone):
            raise Wrong("a row beside others gets other tokens")


def check_bounds(model: EDLMForMaskedDiffusion) -> None:
    """Bounds of texts beside others are those of the texts alone."""
    ids, real = padded(left=False)
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, real, strict=True)]
    together, alone = (nelbo(model, rows, num_samples=2, batch_size=size).sequence_nats for size in (8, 1))
    compare("bounds", torch.tensor(together), torch.tensor(alone))


# -- Energies


def check_energy(network: nn.Module) -> str:
    """Compare energies with the plain log-likelihood.

    Returns:
        How often a prompt that the candidates have in common is read.
    """
    denoiser = tiny_denoiser(vocab_size=VOCABULARY, model_length=LENGTH)
    model = EDLMForMaskedDiffusion.from_components(denoiser, network)
    shapes = shapes_read(network)

    for prompt in (PROMPT, 4):
        candidates, noisy = completions(prompt)
        expected = by_definition(model, candidates, noisy)

        # Twice, because a network may be read in another way once its cache is known
        for _ in range(2):
            shapes.clear()
            compare("energies", model.energy(candidates, noisy), expected)

        if prompt == PROMPT:
            reads_once = shapes[0] == (len(noisy), PROMPT)

    check_padded_energies(model)
    model.generate(
        noisy,
        max_denoising_steps=2,
        num_candidates=2,
        generator=torch.Generator().manual_seed(0),
    )
    return "prompt read once" if reads_once else ""


def check_padded_energies(model: EDLMForMaskedDiffusion) -> None:
    """Energies of padded rows are those of the rows alone."""
    ids, real = padded(left=True)
    masked = (real == 1) & (torch.arange(LONG) % 2 == 0)
    candidates = torch.stack([ids, ids.masked_fill(masked, 4)], dim=1)
    noisy = ids.masked_fill(masked, MASK)

    energies = model.energy(candidates, noisy, real)
    for row in range(len(ids)):
        kept = real[row].bool()
        alone = model.energy(candidates[row : row + 1, :, kept], noisy[row : row + 1, kept])
        compare("energies of padded rows", energies[row : row + 1], alone)


# -- Texts


def texts() -> tuple[torch.LongTensor, list[int]]:
    """Two texts (2, LONG) without special tokens and masks, and how many tokens of each are kept where they differ."""
    ids = torch.randint(2, MASK, (2, LONG), generator=torch.Generator().manual_seed(3))
    return ids, [SHORT, LONG]


def padded(left: bool) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Ids and attention mask (2, LONG) of texts of different lengths."""
    ids, lengths = texts()
    columns = torch.arange(LONG)
    if left:
        columns = columns.flip(0)
    real = (columns < torch.tensor(lengths).unsqueeze(1)).long()
    return ids.masked_fill(real == 0, 0), real


def completions(prompt: int) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Three candidates (2, 3, LONG) for each row with a prompt in common, and the noisy rows (2, LONG)."""
    ids = torch.randint(2, MASK, (2, 3, LONG), generator=torch.Generator().manual_seed(4))
    ids[:, :, :prompt] = ids[:, :1, :prompt]
    noisy = ids[:, 0].clone()
    noisy[:, prompt:] = MASK
    return ids, noisy


def compare(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise Wrong where two results differ by more than rounding."""
    error = (found - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if not error <= 1e-4 * scale:
        raise Wrong(f"{what} differ by {error:.1g}")


# -- The page


def try_all(only: list[str] | None = None) -> dict[str, dict[str, dict]]:
    """Results by kind of class (`masked`, `causal`), type of model and part."""
    kinds = {
        "masked": (MODEL_FOR_MASKED_LM_MAPPING, try_masked),
        "causal": (MODEL_FOR_CAUSAL_LM_MAPPING, try_causal),
    }
    found = {}
    for kind, (mapping, try_class) in kinds.items():
        classes = {config_class.model_type: mapping[config_class] for config_class in mapping}
        classes = {model_type: chosen for model_type, chosen in classes.items() if model_type not in OURS}

        found[kind] = {}
        for model_type in sorted(set(classes) & set(only or classes)):
            model_class = classes[model_type]
            if isinstance(model_class, (tuple, list)):
                model_class = model_class[0]
            results = try_class(model_class)
            found[kind][model_type] = {part: asdict(result) for part, result in results.items()}
            if only:
                print(model_type, found[kind][model_type])

    return found


def page(found: dict[str, dict[str, dict]]) -> str:
    """The page as Markdown, from the results of `try_all`."""
    version = ".".join(transformers.__version__.split(".")[:2])
    parts = [INTRODUCTION.format(version=version)]

    parts.append("## Masked language models\n")
    parts.append(counts("As the denoiser", found["masked"], "denoiser"))
    parts.append(table(found["masked"], {"denoiser": "as the denoiser"}))

    parts.append("## Causal language models\n")
    parts.append(counts("As the energy", found["causal"], "energy"))
    parts.append(
        counts(
            "As the denoiser, with `is_causal = False` in the configuration",
            found["causal"],
            "denoiser",
        )
    )
    parts.append(
        table(
            found["causal"],
            {"energy": "as the energy", "denoiser": "as the denoiser, not causal"},
        )
    )
    return "\n".join(parts)


def counts(title: str, results: dict[str, dict], part: str) -> str:
    """A sentence that says how many types have each outcome."""
    outcomes = [result[part]["outcome"] for result in results.values()]
    numbers = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("right", "refused", "not tried", "wrong")]
    told = [number for number in numbers if not number.startswith("0 ")]
    return f"{title}: {', '.join(told)} of {len(outcomes)} types.\n"


def table(results: dict[str, dict], columns: dict[str, str]) -> str:
    """One row per type of model, and one column per part."""
    rows = [f"| type | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for model_type, result in results.items():
        cells = [in_cell(Result(**result[part])) for part in columns]
        rows.append(f"| `{model_type}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def in_cell(result: Result) -> str:
    """A result as Markdown, with nothing in it that would be read as such."""
    note = re.sub(r"([*<`|])", r"\\\1", result.note)
    if result.outcome == "right":
        return f"right, {note}" if note else "right"
    return f"{result.outcome}: {note}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("found", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = try_all(options.only)
    options.found.write_text(json.dumps(found, indent=1))
    if options.page:
        PAGE.write_text(page(found), encoding="utf-8")
