"""The text of a model card: what a checkpoint is, how it is loaded, and what its author has told about it.

A card is made of the configuration of the model and of `CardFacts`. It knows no folder and no Hub: the name of the
repository in its examples is a placeholder, which a push fills in (`with_names`).
"""

import re
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from edlm_hf.card_signatures import UNKNOWN, is_untouched, sign
from edlm_hf.checkpoints import CHECKPOINTS, ships
from edlm_hf.hidden_secrets import hide_secrets
from edlm_hf.markdown import code_block, code_span, inline

PAPER = "[EDLM](https://arxiv.org/abs/2410.21357)"
PLACEHOLDER = "REPOSITORY"


@dataclass
class CardFacts:
    """Facts that a model cannot tell about itself. Set as `model.card_facts`, they are in every card of it.

    Args:
        data: the training data, in words.
        datasets: the names of the data sets among it that are on the Hub.
        command: the command that trained it.
        results: measurements, {name: (value, standard error or None)}.
        measured: on which data the results were measured, and how.
        limits: uses that it is not good for, besides the limits of every such model.
        license: the license of the weights, as the Hub spells it (`apache-2.0`, `mit`, ...).
        language: the language of its texts (`en`, ...), or several.

    Raises:
        ValueError: a fact is not of its kind.
    """

    data: str | None = None
    datasets: list[str] = field(default_factory=list)
    command: str | None = None
    results: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    measured: str | None = None
    limits: str | None = None
    license: str | None = None
    language: str | list[str] | None = None

    def __post_init__(self):
        for name in ("data", "command", "measured", "limits", "license"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} of the card is {value!r}, but it must be a text, or None.")

        # A text would be read as a list of letters
        if self.datasets is not None and not is_list_of_texts(self.datasets):
            raise ValueError(f"datasets of the card is {self.datasets!r}, but it must be a list of names.")
        if self.language is not None and not isinstance(self.language, str) and not is_list_of_texts(self.language):
            raise ValueError(f"language of the card is {self.language!r}, but it must be a text, or a list of texts.")

        # What is measured, as the table of the card shows it
        if not isinstance(self.results, dict):
            raise ValueError(f"results of the card is {self.results!r}, but {{name: (value, error)}} is needed.")
        for name, measurement in self.results.items():
            check_measurement(name, measurement)


@dataclass(frozen=True)
class ModelKind:
    """The part of a card that is the same for all models of a class.

    Args:
        description: one sentence.
        auto_class: the class of transformers that loads it, None where only this package does.
        task: name of the task on the Hub.
        example: lines of code that use `model` and `tokenizer`.
    """

    description: str
    auto_class: str | None
    task: str | None
    example: tuple[str, ...]


def is_list_of_texts(value) -> bool:
    """Whether a value is a list of texts. YAML has no tuples."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def check_measurement(name: str, measurement) -> None:
    """Raise ValueError unless a measurement of a card is a number and its standard error, or None for that."""
    is_pair = isinstance(measurement, (tuple, list)) and len(measurement) == 2
    if is_pair and isinstance(name, str):
        value, error = measurement
        if isinstance(value, Real) and (error is None or isinstance(error, Real)):
            return
    raise ValueError(
        f"results of the card has {name!r}: {measurement!r}, but every name has a pair (value, standard error) of "
        "numbers, or (value, None). Call float() on a tensor."
    )


GENERATE = "rows = model.generate(max_denoising_steps=128)"
# Where sequences start with a token that is context, never masked in training: the denoiser has to see it
GENERATE_AFTER_START = (
    "rows = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens={}, max_denoising_steps=128)"
)
CONTINUE = 'rows = model.generate(tokenizer.encode("a", return_tensors="pt"), do_sample=True)'
ENCODE = 'rows = tokenizer("a", return_tensors="pt").input_ids'
PRINT = "print(tokenizer.batch_decode(rows, skip_special_tokens=True)[0])"

# By the name of the class
KINDS = {
    "EDLMForMaskedDiffusion": ModelKind(
        f"{PAPER}, an energy-based diffusion language model: the denoiser proposes many tokens at once, and a residual "
        "energy that sees the whole sequence weighs the proposals.",
        "AutoModelForMaskedLM",
        "text-generation",
        (GENERATE, PRINT),
    ),
    "MDLMForMaskedLM": ModelKind(
        "A masked diffusion language model ([MDLM](https://arxiv.org/abs/2406.07524)): it writes text by filling "
        f"masks, many at once, and can be the denoiser of an {PAPER}.",
        "AutoModelForMaskedLM",
        "fill-mask",
        (GENERATE, PRINT),
    ),
    "MDLMForCausalLM": ModelKind(
        f"An autoregressive language model, the transformer of MDLM made causal; it can be the energy of an {PAPER}.",
        "AutoModelForCausalLM",
        "text-generation",
        (CONTINUE, PRINT),
    ),
    "MDLMModel": ModelKind(
        "The trunk of a masked diffusion language model ([MDLM](https://arxiv.org/abs/2406.07524)): hidden states.",
        "AutoModel",
        "feature-extraction",
        (ENCODE, "print(model(rows).last_hidden_state.shape)"),
    ),
    "EDLMEnergyModel": ModelKind(
        f"The energy network of an {PAPER}: E(x_0, x_t) of a clean and a noisy sequence, low = likely.",
        None,
        None,
        (ENCODE, "print(model(rows, rows).energy)"),
    ),
}

# Values of a configuration, in the words of the table
ENERGY_TYPES = {
    "none": "none (plain masked diffusion)",
    "ar": "`ar`: -log p_AR(x_0) + log p_theta(x_0 \\| x_t)",
    "coar": "`coar`: -log p_AR over the masked positions + log p_theta(x_0 \\| x_t)",
    "nce": "`nce`: a network with a scalar output",
}
ENERGY_SCOPES = {"sequence": "whole sequences", "revealed": "what a step reveals"}
ENERGY_WEIGHTS = {"own": "its own", "shared": "the denoiser's, with a head"}


def model_card(
    architecture: str,
    config: PreTrainedConfig | None = None,
    facts: CardFacts | None = None,
    *,
    base_models: list[str] | None = None,
    adapter: bool = False,
    energy_scope: str | None = None,
    tags: list[str] | None = None,
) -> str:
    """Write README.md of a checkpoint, signed as ours and without secrets.

    Args:
        architecture: name of the class, as config.json has it.
        config: the configuration of the model, or of the model under an adapter.
        facts: facts that only the author knows. The card says where something is missing.
        base_models: names of the models that this one was made from. Names that are not on the Hub are left out.
        adapter: the checkpoint is an adapter (PEFT) for such a model.
        energy_scope: the scope that the adapter was trained for, the one of `config` unless given.
        tags: tags besides those that every such model has.
    """
    # Names that only this machine knows are left out: they would be links to nothing
    facts = facts or CardFacts()
    kind = KINDS.get(architecture, KINDS["EDLMForMaskedDiffusion"])
    bases = [name for name in base_models or [] if is_hub_name(name)]
    shipped = next(filter(ships, base_models or []), None)

    # 1. Metadata, for the Hub. Measurements stand in its `model-index`, under the name of the model
    family = "edlm" if architecture.startswith("EDLM") else "mdlm"
    all_tags = [family, "masked-diffusion", "diffusion-language-model"]
    if adapter:
        all_tags.append("lora")
    all_tags += tags or []
    measurements = eval_results(facts, kind.task)
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        license=facts.license,
        language=facts.language,
        pipeline_tag=kind.task,
        base_model=bases or None,
        datasets=facts.datasets or None,
        tags=list(dict.fromkeys(all_tags)),
        model_name=PLACEHOLDER if measurements else None,
        eval_results=measurements or None,
    )

    # 2. The kind of the model, and its table
    sections = [f"# {PLACEHOLDER}"]
    if adapter:
        sections.append(f"An adapter for this model: {kind.description}")
        if shipped:
            sections.append(f"Its base is the checkpoint `{shipped}`, which ships with edlm-hf.")
    else:
        sections.append(kind.description)
        if config is not None:
            sections.append(table_of(config))

    # 3. Code to use it. The scope is not stored in an adapter, and its base may say another
    source = f'"{PLACEHOLDER}"'
    energy_scope = energy_scope or getattr(config, "energy_scope", None)
    if adapter and energy_scope is not None:
        source += f', energy_scope="{energy_scope}"'
    tokenizer = bases[0] if adapter and bases else PLACEHOLDER
    if adapter and shipped:
        scope = source.removeprefix(f'"{PLACEHOLDER}"')
        sections += ["## Use", *examples_on_shipped_base(kind, config, shipped, scope)]
    else:
        sections += ["## Use", *examples_of(architecture, config, source, tokenizer, adapter=adapter)]

    # 4. The facts of its author, with gaps where nothing was said
    sections += sections_of(facts, has_bases=bool(bases))

    body = "\n\n".join(section for section in sections if section)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")
    return sign(hide_secrets(str(card)))


def example_of(kind, config: PreTrainedConfig | None) -> tuple[str, tuple[str, ...]]:
    """The modules that the code of a card imports, and its lines after loading."""
    if GENERATE not in kind.example or getattr(config, "bos_token_id", None) is None:
        return "transformers", kind.example

    # The start token is a prompt, and the rest of the longest sequence is generated
    new_tokens = (config.max_position_embeddings or 129) - 1
    return "torch, transformers", (GENERATE_AFTER_START.format(new_tokens), *kind.example[1:])


def examples_on_shipped_base(kind, config: PreTrainedConfig | None, base: str, scope: str) -> list[str]:
    """Write code that loads an adapter on a checkpoint that ships with this package.

    Args:
        base: name of the checkpoint.
        scope: further arguments of `from_pretrained`, as code.
    """
    # The base is a folder of the package, whose path differs from machine to machine
    imports, example = example_of(kind, config)
    folder = f'edlm_hf.checkpoint("{base}")'
    lines = [
        f"base = transformers.{kind.auto_class}.from_pretrained({folder}{scope})",
        f'model = peft.PeftModel.from_pretrained(base, "{PLACEHOLDER}")',
        f"tokenizer = transformers.AutoTokenizer.from_pretrained({folder})",
    ]
    command = f'edlm generate --model "{PLACEHOLDER}"'
    return [
        "With [edlm-hf](https://pypi.org/project/edlm-hf) (`pip install edlm-hf`, `peft`):",
        code_block(f"import edlm_hf, peft, {imports}", *lines, *example),
        "On the command line, merged into its base:",
        code_block(command, language="bash"),
    ]


def examples_of(
    architecture: str, config: PreTrainedConfig | None, source: str, tokenizer: str, *, adapter: bool
) -> list[str]:
    """Write code that loads and uses a model, with this package and, where that is possible, without it.

    Args:
        source: the arguments of `from_pretrained`, as code.
        tokenizer: name of the repository that has the tokenizer.
        architecture, config, adapter: as in `model_card`.
    """
    kind = KINDS.get(architecture, KINDS["EDLMForMaskedDiffusion"])
    imports, example = example_of(kind, config)

    # 1. With this package
    model_class = f"edlm_hf.{architecture}"
    if kind.auto_class:
        model_class = f"transformers.{kind.auto_class}"
    loads = {
        "model": f"{model_class}.from_pretrained({source})",
        "tokenizer": f'transformers.AutoTokenizer.from_pretrained("{tokenizer}")',
    }
    lines = [f"{name} = {call}" for name, call in loads.items()]
    packages = "`pip install edlm-hf`, `peft`" if adapter else "`pip install edlm-hf`"
    sections = [
        f"With [edlm-hf](https://pypi.org/project/edlm-hf) ({packages}):",
        code_block(f"import edlm_hf, {imports}", *lines, *example),
    ]
    if kind.auto_class is None:
        return sections

    # 2. Without it, by the code that travels with the weights: a further argument before the bracket
    lines = [f"{name} = {call[:-1]}, trust_remote_code=True)" for name, call in loads.items()]
    location = "in this repository (pin it with `revision=...`, since it is run)"
    if adapter:
        location = "in the repository of the base model, which is run"
    sections += [
        f"Without it, by the code {location}:",
        code_block(f"import {imports}", *lines, *example),
    ]
    return sections


def sections_of(facts: CardFacts, *, has_bases: bool) -> list[str]:
    """Write the facts of an author, under a heading each.

    Args:
        has_bases: the model was made from others on the Hub, whose license may be the answer.
    """
    limits = "It continues text as its training data would: it follows no instructions, and what it says may be false."
    if facts.limits:
        limits += f" {facts.limits}"

    # A license is not taken over from a base: whether it applies is for a person to say
    license_of_weights = facts.license or UNKNOWN
    if not facts.license and has_bases:
        license_of_weights += " They were made from the base models above."

    command = UNKNOWN
    if facts.command:
        command = code_block(facts.command, language="bash")

    return [
        "## Data",
        facts.data or UNKNOWN,
        "## Training",
        command,
        "## Measured",
        results_table(facts) or UNKNOWN,
        "## Limits",
        limits,
        "## Licence",
        f"Code: Apache-2.0. Weights: {inline(license_of_weights)}",
    ]


def table_of(config: PreTrainedConfig) -> str:
    """Write the parts of a configuration that readers want to know, as a table of two columns."""
    rows = {}

    if config.model_type == "edlm":
        rows["denoiser"] = f"`{config.denoiser_config.model_type}`"
        rows["energy"] = ENERGY_TYPES[config.energy_type]
        if config.energy_type != "none":
            rows["energy weighs"] = ENERGY_SCOPES[config.energy_scope]
            rows["weights of the energy"] = ENERGY_WEIGHTS[config.energy_weights]
        if is_hub_name(config.energy_name_or_path):
            revision = code_span(config.energy_revision or "main")
            rows["weights of the energy"] = f"loaded from `{config.energy_name_or_path}`, revision {revision}"

    # Rows without a value are left out
    if config.vocab_size:
        rows["vocabulary"] = f"{config.vocab_size:,}"
    rows["mask token"] = config.mask_token_id
    rows["longest sequence"] = config.max_position_embeddings
    if not getattr(config, "causal", False):
        rows["noise schedule"] = config.noise_schedule

    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def results_table(facts: CardFacts) -> str | None:
    """Write a table of measurements with standard errors, after the words that say how they were measured."""
    if not facts.results:
        return None

    lines = ["| what | value | standard error |", "|---|---|---|"]
    for name, (value, error) in facts.results.items():
        shown = "" if error is None else f"{error:.2g}"
        lines.append(f"| {inline(name)} | {value:.6g} | {shown} |")

    table = "\n".join(lines)
    if facts.measured:
        return f"{facts.measured}\n\n{table}"
    return table


def eval_results(facts: CardFacts, task: str | None) -> list[EvalResult]:
    """List the measurements of the table as the Hub reads them: `1.826 ± 0.012` where an error is known."""
    entries = []
    for name, (value, error) in facts.results.items():
        shown = value if error is None else f"{value:.6g} ± {error:.2g}"
        entries.append(
            EvalResult(
                task_type=task or "other",
                dataset_type="text",
                dataset_name=facts.measured or "text",
                metric_type=name,
                metric_value=shown,
            )
        )
    return entries


def with_names(card: str, repo_id: str, tags: list[str] | None = None) -> str:
    """Write the name of its repository into the examples of a card, and add tags.

    A repository is not its own base. A card of ours remains ours.
    """
    untouched = is_untouched(card)

    # Only where we write it ourselves: in quotes, as code, as the title, and in the metadata
    named = card.replace(f'"{PLACEHOLDER}"', f'"{repo_id}"')
    named = named.replace(f"`{PLACEHOLDER}`", f"`{repo_id}`")
    named = named.replace(f"\n# {PLACEHOLDER}\n", f"\n# {repo_id}\n")
    named = named.replace(f"\n- name: {PLACEHOLDER}\n", f"\n- name: {repo_id}\n")

    # The metadata is written anew only where it changes: a card of a person keeps its layout
    parsed = ModelCard(named, ignore_metadata_errors=True)
    bases = base_models_of(parsed)
    new_tags = [tag for tag in tags or [] if tag not in (parsed.data.tags or [])]
    if new_tags or repo_id in bases:
        parsed.data.base_model = [name for name in bases if name != repo_id] or None
        parsed.data.tags = (parsed.data.tags or []) + new_tags
        named = str(parsed)

    return sign(named) if untouched else named


def base_models_of(card: ModelCard) -> list[str]:
    """List the base models in a card, which may have one, several or none."""
    bases = card.data.base_model or []
    if isinstance(bases, str):
        return [bases]
    return bases


def is_hub_name(name: str | None) -> bool:
    """Whether a `name_or_path` is a repository of the Hub, as far as can be told without asking the Hub."""
    if not name or name in CHECKPOINTS or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        return False
    return not Path(name).exists()


__all__ = ["KINDS", "CardFacts", "base_models_of", "is_hub_name", "model_card", "with_names"]
