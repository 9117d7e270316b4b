"""The model card of a checkpoint, and a push to the Hub that keeps it.

Where transformers pushes a model it replaces README.md by a generic text; `CardMixin` writes ours beside the weights
and pushes it with them, in one commit. A card that a person wrote or edited is not replaced.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
)
from transformers import PreTrainedConfig
from transformers.utils import logging

from .hidden_secrets import hide_secrets
from .repository_files import check_no_secrets, find_file, repository_files

logger = logging.get_logger(__name__)

PAPER = "[EDLM](https://arxiv.org/abs/2410.21357)"
PLACEHOLDER = "REPOSITORY"  # the name in the examples of a card, filled in by a push
UNKNOWN = "Not recorded."
BLANK = "[More Information Needed]"  # of the templates of huggingface_hub and peft
SIGNATURE = r"\n<!-- edlm-hf wrote this card: ([0-9a-f]{16}) -->\n*\Z"
WEIGHTS = r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
MOST_NAMES = 20  # of files that are left behind, in a message

# Class -> what it is, how transformers loads it, the Hub's name of the task, what the example does with it
GENERATE = "rows = model.generate(max_denoising_steps=128)"
# Where sequences start with a token that is context, never masked in training: the denoiser has to see it
GENERATE_AFTER_START = (
    "rows = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens={}, max_denoising_steps=128)"
)
PRINT = "print(tokenizer.batch_decode(rows, skip_special_tokens=True)[0])"
KINDS = {
    "EDLMForMaskedDiffusion": (
        f"{PAPER}, an energy-based diffusion language model: the denoiser proposes many tokens at once, and a residual "
        "energy that sees the whole sequence weighs the proposals.",
        "AutoModelForMaskedLM",
        "text-generation",
        (GENERATE, PRINT),
    ),
    "MDLMForMaskedLM": (
        "A masked diffusion language model ([MDLM](https://arxiv.org/abs/2406.07524)): it writes text by filling "
        f"masks, many at once, and can be the denoiser of an {PAPER}.",
        "AutoModelForMaskedLM",
        "fill-mask",
        (GENERATE, PRINT),
    ),
    "MDLMForCausalLM": (
        f"An autoregressive language model, the transformer of MDLM made causal; it can be the energy of an {PAPER}.",
        "AutoModelForCausalLM",
        "text-generation",
        (
            'rows = model.generate(tokenizer.encode("a", return_tensors="pt"), do_sample=True)',
            PRINT,
        ),
    ),
    "MDLMModel": (
        "The trunk of a masked diffusion language model ([MDLM](https://arxiv.org/abs/2406.07524)): hidden states.",
        "AutoModel",
        "feature-extraction",
        ('rows = tokenizer("a", return_tensors="pt").input_ids', "print(model(rows).last_hidden_state.shape)"),
    ),
    "EDLMEnergyModel": (
        f"The energy network of an {PAPER}: E(x_0, x_t) of a clean and a noisy sequence, low = likely.",
        None,
        None,
        ('rows = tokenizer("a", return_tensors="pt").input_ids', "print(model(rows, rows).energy)"),
    ),
}
ENERGIES = {
    "none": "none (plain masked diffusion)",
    "ar": "`ar`: -log p_AR(x_0) + log p_theta(x_0 \\| x_t)",
    "coar": "`coar`: -log p_AR over the masked positions + log p_theta(x_0 \\| x_t)",
    "nce": "`nce`: a network with a scalar output",
}


@dataclass
class CardFacts:
    """What a model cannot tell about itself; set it as `model.card_facts`, and every save and push says it.

    Args:
        data: what the model was trained on, in words; `datasets`: those of it on the Hub, by name.
        command: the command that trained it.
        results: measurements, {name: (value, standard error or None)}; `measured`: on what and how.
        limits: what it is not good for, beyond what every such model has.
        license: of the weights, as the Hub spells it (`apache-2.0`, `mit`, ...). language: `en`, ...
    """

    data: str | None = None
    datasets: list[str] = field(default_factory=list)
    command: str | None = None
    results: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    measured: str | None = None
    limits: str | None = None
    license: str | None = None
    language: str | None = None


# --------------------------------------------------------------------------------------------------------- the text


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
    """README.md of a checkpoint.

    Args:
        architecture: name of the class, as config.json has it. config: of the model, or of the one under an adapter.
        facts: what only the author knows; the card says where something is missing.
        base_models: what this was made from; names that are not of the Hub are left out.
        adapter: the checkpoint is an adapter (PEFT) for such a model, trained for `energy_scope`.
        tags: beside those of every such model.
    """
    facts = facts or CardFacts()
    what, auto_class, task, example = KINDS.get(architecture, KINDS["EDLMForMaskedDiffusion"])
    names = [name for name in base_models or [] if is_hub_name(name)]
    known = ["edlm" if architecture.startswith("EDLM") else "mdlm", "masked-diffusion", "diffusion-language-model"]
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        license=facts.license,
        language=facts.language,
        pipeline_tag=task,
        base_model=names or None,
        datasets=facts.datasets or None,
        tags=list(dict.fromkeys(known + (["lora"] if adapter else []) + list(tags or []))),
    )
    source = f'"{PLACEHOLDER}"'
    energy_scope = energy_scope or getattr(config, "energy_scope", None)
    if adapter and energy_scope is not None:
        source += f', energy_scope="{energy_scope}"'  # not in the adapter, and its base may say otherwise
    loader = f"transformers.{auto_class}" if auto_class else f"edlm_hf.{architecture}"
    by_package = f"{loader}.from_pretrained({source})"
    tokenizer = names[0] if adapter and names else PLACEHOLDER
    tokenizer = f'transformers.AutoTokenizer.from_pretrained("{tokenizer}")'
    imports = "transformers"
    if GENERATE in example and getattr(config, "bos_token_id", None) is not None:
        imports = "torch, transformers"
        new_tokens = (config.max_position_embeddings or 129) - 1
        example = (GENERATE_AFTER_START.format(new_tokens), *example[1:])
    limits = "It continues text as its training data would: it follows no instructions, and what it says may be false."
    limits += f" {facts.limits}" if facts.limits else ""
    of_weights = UNKNOWN + (" They were made from the base models above." if names else "")
    license = f"Code: Apache-2.0. Weights: {one_line(facts.license or of_weights)}"
    sections = [
        f"# {PLACEHOLDER}",
        f"An adapter for this model: {what}" if adapter else what,
        table_of(config) if config is not None and not adapter else "",
        "## Use",
        f"With [edlm-hf](https://pypi.org/project/edlm-hf) (`pip install edlm-hf`{', `peft`' if adapter else ''}):",
        code(f"import edlm_hf, {imports}", f"model = {by_package}", f"tokenizer = {tokenizer}", *example),
    ]
    if auto_class is not None:
        loads = [
            f"{name} = {call[:-1]}, trust_remote_code=True)"
            for name, call in (("model", by_package), ("tokenizer", tokenizer))
        ]
        place = "in this repository (pin it with `revision=...`, since it is run)"
        if adapter:
            place = "in the repository of the base model, which is run"
        sections += [
            f"Without it, by the code {place}:",
            code(f"import {imports}", *loads, *example),
        ]
    sections += [
        "## Data",
        facts.data or UNKNOWN,
        "## Training",
        code(facts.command, language="bash") if facts.command else UNKNOWN,
        "## Measured",
        results_table(facts) or UNKNOWN,
        "## Limits",
        limits,
        "## Licence",
        license,
    ]
    body = "\n\n".join(section for section in sections if section)
    return sign(hide_secrets(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))))


def code(*lines: str, language: str = "python") -> str:
    """A block of code, which none of its lines ends."""
    fence = "`" * max(3, longest_ticks("\n".join(lines)) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def code_span(text: str) -> str:
    """A name as code in a line of text, whatever is in it."""
    text = one_line(text)
    ticks = "`" * (longest_ticks(text) + 1)
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def one_line(text: str) -> str:
    """A text for a line, or a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table_of(config: PreTrainedConfig) -> str:
    """What a configuration says to a reader."""
    rows = {}
    if config.model_type == "edlm":
        rows["denoiser"] = f"`{config.denoiser_config.model_type}`"
        rows["energy"] = ENERGIES[config.energy_type]
        if config.energy_type != "none":
            rows["energy weighs"] = {"sequence": "whole sequences", "revealed": "what a step reveals"}[
                config.energy_scope
            ]
            rows["weights of the energy"] = {"own": "its own", "shared": "the denoiser's, with a head"}[
                config.energy_weights
            ]
        if is_hub_name(config.energy_name_or_path):
            revision = code_span(config.energy_revision or "main")
            rows["weights of the energy"] = f"loaded from `{config.energy_name_or_path}`, revision {revision}"
    rows |= {
        "vocabulary": f"{config.vocab_size:,}" if config.vocab_size else None,
        "mask token": config.mask_token_id,
        "longest sequence": config.max_position_embeddings,
        "noise schedule": None if getattr(config, "causal", False) else config.noise_schedule,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def results_table(facts: CardFacts) -> str | None:
    """| what | value | standard error |, with the words on how it was measured."""
    if not facts.results:
        return None
    rows = [
        f"| {one_line(name)} | {value:.6g} | {'' if error is None else f'{error:.2g}'} |"
        for name, (value, error) in facts.results.items()
    ]
    table = "\n".join(["| what | value | standard error |", "|---|---|---|", *rows])
    return f"{facts.measured}\n\n{table}" if facts.measured else table


# ----------------------------------------------------------------------------------------------------- whose card it is


def sign(text: str) -> str:
    """The card with a last line that tells whether somebody has edited it since."""
    text = re.sub(SIGNATURE, "", text).rstrip("\n") + "\n"
    return f"{text}\n<!-- edlm-hf wrote this card: {digest(text)} -->\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def is_untouched(text: str) -> bool:
    """Whether a card is ours, or a template in which every blank is still open: nobody's words would be lost."""
    signature = re.search(SIGNATURE, text)
    if signature is not None:
        return signature[1] == digest(text[: signature.start()])
    return text.count(BLANK) == Path(ModelCard.default_template_path).read_text(encoding="utf-8").count(BLANK)


def replaces(new: str, old: str | None) -> bool:
    """Whether `new` may take the place of `old`: that is none, or untouched and with no less left unsaid."""
    if old is None:
        return True
    return is_untouched(old) and new.count(UNKNOWN) <= old.count(UNKNOWN) + old.count(BLANK)


def is_hub_name(name: str | None) -> bool:
    """Whether a `name_or_path` is a repository of the Hub, as far as can be told without asking it."""
    return bool(name) and bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and not Path(name).exists()


# ------------------------------------------------------------------------------------------------------ saving, pushing


class CardMixin:
    """`save_pretrained` writes the card beside the weights, `push_to_hub` carries it."""

    card_facts: CardFacts | None = None

    def save_pretrained(
        self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, *args, **kwargs
    ):
        """As in transformers, with README.md, unless there is one that says more or was edited (see `replaces`)."""
        super().save_pretrained(save_directory, is_main_process, state_dict, False, *args, **kwargs)
        if not is_main_process or not Path(save_directory).is_dir():
            return
        config, names = self.config, origins(self.config)
        adapter = bool(getattr(self, "_hf_peft_config_loaded", False))
        if adapter:
            names = [read_json(save_directory, "adapter_config.json").get("base_model_name_or_path")]
        card = model_card(
            type(self).__name__.removeprefix("FSDP"),
            config,
            self.card_facts,
            base_models=names,
            adapter=adapter,
            tags=self.model_tags,
        )
        path = Path(save_directory, "README.md")
        if replaces(card, path.read_text(encoding="utf-8") if path.exists() else None):
            path.write_text(card, encoding="utf-8")
        if push_to_hub:
            chosen = {key: kwargs[key] for key in ("private", "token", "revision", "create_pr") if key in kwargs}
            repo_id = kwargs.get("repo_id") or Path(save_directory).name
            push_folder(save_directory, repo_id, commit_message=kwargs.get("commit_message"), **chosen)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs) -> CommitInfo:
        """Upload the model with its card; arguments as in transformers, the rest as for `push_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return push_folder(folder, repo_id, **({"commit_message": f"Upload {type(self).__name__}"} | kwargs))


def origins(config: PreTrainedConfig) -> list[str]:
    """Where a model and its parts were loaded from: names and paths."""
    parts = [getattr(config, name, None) for name in ("denoiser_config", "energy_config")]
    names = [getattr(part, "_name_or_path", None) for part in (config, *parts)]
    names.append(getattr(config, "energy_name_or_path", None))
    return list(dict.fromkeys(name for name in names if name))


def read_json(folder: str | Path, name: str) -> dict | None:
    """A JSON file of a folder, None where there is no such file in it."""
    path = find_file(folder, name)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def check_references(folder: str | Path) -> None:
    """Raise ValueError if a checkpoint refers to another one that is only on this machine."""
    config, adapter = read_json(folder, "config.json"), read_json(folder, "adapter_config.json")
    energy = (config or {}).get("energy_name_or_path")
    if energy is not None and not is_hub_name(energy):
        raise ValueError(
            f"The energy is kept by reference to {energy!r}, which is no repository of the Hub, so nobody else could "
            "load it. Push the energy first and refer to that, or store it inside (energy_by_reference=False)."
        )
    base = (adapter or {}).get("base_model_name_or_path")
    if config is None and adapter is not None and not is_hub_name(base):
        raise ValueError(
            f"The adapter's base model is {base!r}, which is no repository of the Hub, so nobody else could load it. "
            "Push the base model, and write its name to base_model_name_or_path in adapter_config.json."
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    tags: list[str] | str | None = None,
    card: str | None = None,
    others: dict[str, bytes | Path] | None = None,
) -> CommitInfo:
    """Upload a folder in one commit: the repository holds all of it or, after an interruption, none of it.

    The folder is only read. What is no part of a model repository is left behind, with a warning that names it: what a
    training run needs for going on, hidden files, links that lead out of the folder (see `repository_files`).

    Weights that are no longer part of the folder are removed from the repository (shards that a single file replaces,
    or the reverse). A README.md that somebody edited on the Hub stays, unless that of the folder was written by hand as
    well.

    Args:
        repo_id: `user/name`, or `name` for the account of the token; made if it does not exist.
        private: of a new repository; True is refused for one that exists and is public.
        revision: a branch, made from `main` if it does not exist.
        tags: added to those of the card.
        card: README.md to be, in place of that of the folder.
        others: files, name -> content or path, beside those of the folder or in place of them.

    Raises:
        ValueError: the repository is public although `private` was asked for, nobody could load the adapter, a file
            holds a token or a private key, or weights are a link that leads out of the folder.
        huggingface_hub.errors.HTTPError: the Hub was not reached, or refused.
    """
    check_references(folder)
    files, left = repository_files(folder)
    contents = files | (others or {})
    if card is not None:
        contents["README.md"] = card.encode()
    check_no_secrets(contents, token if isinstance(token, str) else get_token())
    if linked := [name for name in left if re.fullmatch(WEIGHTS, name)]:
        raise ValueError(
            f"{linked[0]} is a link that leads out of {folder}, and links are not followed. Put the file itself there."
        )
    if left:
        names = [name if name.isprintable() else ascii(name) for name in left[:MOST_NAMES]]
        rest = f" and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
        logger.warning(f"Not uploaded, since it is no part of a model repository: {', '.join(names)}{rest}.")

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public. Make it private in its settings, or push without private.")
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    stored = set(api.list_repo_files(repo_id, revision=revision))
    operations = [CommitOperationAdd(name, contents[name]) for name in sorted(contents) if name != "README.md"]
    if any(re.fullmatch(WEIGHTS, name) for name in files):
        stale = {name for name in stored - files.keys() if re.fullmatch(WEIGHTS, name)}
        operations += [CommitOperationDelete(name) for name in sorted(stale)]

    if card is None and "README.md" in files:
        card = files["README.md"].read_text(encoding="utf-8")
    old = None
    if "README.md" in stored:
        path = api.hf_hub_download(repo_id, "README.md", revision=revision)
        old = Path(path).read_text(encoding="utf-8")
    if card is not None:
        card = with_names(card, repo_id, [tags] if isinstance(tags, str) else tags)
        if replaces(card, old) or not is_untouched(card):
            operations.append(CommitOperationAdd("README.md", card.encode()))
    return api.create_commit(
        repo_id,
        operations,
        commit_message=hide_secrets(commit_message or "Upload model"),
        commit_description=hide_secrets(commit_description or "") or None,
        revision=revision,
        create_pr=create_pr,
    )


def with_names(card: str, repo_id: str, tags: list[str] | None = None) -> str:
    """A card whose examples name the repository, which is not its own base model."""
    untouched = is_untouched(card)
    named = card.replace(f'"{PLACEHOLDER}"', f'"{repo_id}"').replace(f"`{PLACEHOLDER}`", f"`{repo_id}`")
    named = named.replace(f"\n# {PLACEHOLDER}\n", f"\n# {repo_id}\n")
    parsed = ModelCard(named, ignore_metadata_errors=True)
    base = parsed.data.base_model or []
    base = [base] if isinstance(base, str) else base
    added = [tag for tag in tags or [] if tag not in (parsed.data.tags or [])]
    if added or repo_id in base:
        parsed.data.base_model = [name for name in base if name != repo_id] or None
        parsed.data.tags = (parsed.data.tags or []) + added
        named = str(parsed)
    return sign(named) if untouched else named


__all__ = ["CardFacts", "CardMixin", "model_card", "push_folder"]
