"""Pushes to the Hub: models, adapters, and the generation engine that any masked diffusion model there can call.

push("runs/energy", "user/edlm", private=True)
push(save_custom_generate("edlm-generate"), "user/edlm-generate")
"""

import inspect
import json
import re
import tempfile
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import CommitInfo, ModelCard
from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

import edlm_hf
from edlm_hf.adapter_loading import keep_scope, name_base_of_adapters, scope_of_adapter
from edlm_hf.card_signatures import BLANK, replaces
from edlm_hf.cards import KINDS, CardFacts, base_models_of, model_card
from edlm_hf.loading import load_config
from edlm_hf.loading_errors import MODEL_FILES, check_file
from edlm_hf.modeling import custom_generate
from edlm_hf.modeling.checkpoints import CheckpointingMixin, auto_map
from edlm_hf.new_folders import check_new_folder, new_folder
from edlm_hf.pushing import push_folder
from edlm_hf.repository_files import find_file, read_json, repository_files
from edlm_hf.sharing import origins

CARD = """\
---
library_name: transformers
license: apache-2.0
tags:
- custom_generate
- masked-diffusion
---

# generate() for masked diffusion language models

## Description

Exact ancestral or first-hitting sampling, infilling of any mask pattern, batches of ragged prompts, blocks, and
proposals weighed by an energy ([EDLM](https://arxiv.org/abs/2410.21357)), for LLaDA, Dream and other masked diffusion
models. The model is used as it is: nothing is trained or changed. The code that LLaDA and Dream ship is written for
transformers 4. Under 5, `edlm_hf.load_published_denoiser` loads their weights without it.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, GenerationMixin
model = AutoModelForMaskedLM.from_pretrained("google-bert/bert-base-uncased")
tokenizer = AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")
engine = GenerationMixin().load_custom_generate("REPOSITORY", trust_remote_code=True)
ids = tokenizer("The capital of [MASK] is [MASK].", return_tensors="pt").input_ids
rows = engine(model, ids, mask_token_id=tokenizer.mask_token_id, max_denoising_steps=32)
print(tokenizer.batch_decode(rows, skip_special_tokens=True)[0])
```

`REPOSITORY` is this one. Models with transformers' own `generate` (a `GenerationMixin`) can also be asked directly:
`model.generate(ids, custom_generate="REPOSITORY", trust_remote_code=True, max_new_tokens=64)`.

## Model compatibility

Bidirectional models that are called as `model(input_ids=..., attention_mask=...)` and return `.logits` (B, L, V), with
a mask token. Causal language models are refused.

## Additional Arguments

These are known from transformers: `attention_mask`, `max_new_tokens`, `max_length`, `temperature`, `top_k`, `top_p`,
`do_sample`, `num_return_sequences`, `eos_token_id`, `pad_token_id`, `logits_processor`, `stopping_criteria`,
`streamer`, `return_dict_in_generate`. These are not, and all are optional:

| argument | meaning |
|---|---|
| `max_denoising_steps` | steps of the reverse chain per block (128) |
| `sampler` | `ancestral`, or `first_hitting`: one token per call |
| `block_length` | fill the text in blocks of this many tokens, left to right (all at once) |
| `energy` | weighs proposals: a callable as below, low = likely |
| `energy_model`, `energy_type` | instead of `energy`, a causal language model of the same vocabulary (`ar`, `coar`) |
| `num_candidates` | k proposals that are weighed (8) |
| `energy_window` | w: the energy acts at times in [1 - w, 1] (1.0) |
| `energy_temperature` | tau of the weights softmax(-E / tau) (1.0) |
| `energy_scope` | `sequence`: complete sequences are weighed; `revealed`: what a step reveals |
| `logits_shift` | 1 if the logits at position i - 1 predict token i; unless given, by the config, 1 for Dream |
| `mask_token_id` | the mask token, where neither config nor generation_config of the model says it |
| `generator` | a `torch.Generator`: the same seed and batch give the same tokens |

An energy is called as `energy(candidate_ids (B, k, L), noisy_ids (B, L), proposal_log_probs (B, k), attention_mask)`
and returns (B, k).

## Output Type changes

Token ids (B, P + new) as usual. With `return_dict_in_generate=True` an `EDLMGenerationOutput` comes back in place of a
`GenerateDecoderOnlyOutput`. It has `sequences`, the energies and effective sample sizes of all steps, the calls of each
row, the `history` with `output_history=True`, and `log_probs` with `output_log_probs=True`. It has no `scores` and no
`logits`, since tokens are not written one after another.
"""


def save_custom_generate(folder: str | Path) -> Path:
    """Write a folder for `model.generate(..., custom_generate=folder)`, or to be pushed to the Hub.

    It holds `custom_generate/generate.py`, the modelling code beside it, the packages it needs, and a model card.

    Args:
        folder: new or empty. It appears when everything in it is complete.

    Returns:
        The folder.

    Raises:
        ValueError: the folder exists and is not empty.
    """
    target = check_new_folder(folder, "folder")
    source = Path(custom_generate.__file__)
    # Of the packages that edlm-hf needs, those of the modelling code: "torch>=2.9.0", without extras
    needed = [line for line in requires("edlm-hf") if re.fullmatch(r"(torch|transformers)\b[^;]*", line)]

    with new_folder(target) as complete:
        code = complete / "custom_generate"
        code.mkdir(parents=True)

        (complete / "README.md").write_text(CARD)
        (code / "requirements.txt").write_text("\n".join(needed) + "\n")
        (code / "generate.py").write_bytes(source.read_bytes())

        # The modules that it imports lie beside it, as transformers looks for them
        for file in map(Path, get_relative_import_files(source)):
            (code / file.name).write_bytes(file.read_bytes())
    return target


def push(model, repo_id: str, *, facts: CardFacts | None = None, **kwargs) -> CommitInfo:
    """Upload a model, an adapter or a folder with either in it, with its model card, in one commit.

    A folder is only read, and a push that was interrupted can be repeated. Files that do not belong
    into a model repository stay here, and a warning names them: the state of a training, hidden
    files, links that lead out of the folder. Code that a model lacks in its folder, as the
    checkpoints that ship do, is added.

    Args:
        model: a folder that `save_pretrained` or `save_custom_generate` wrote, or anything that has
            `save_pretrained`, a `PeftModel` among them.
        repo_id: `user/name`, or `name` for the account of the token.
        facts: facts for the card that only the author knows. A model of this package keeps them as
            its `card_facts`.
        kwargs: `private`, `revision`, `commit_message`, `token`, `create_pr`, `tags`: see
            `push_folder`.

    Raises:
        ValueError: there is no such folder, nothing in it could be loaded, the repository is public
            although `private` was asked for, or the checkpoint refers to another one that is only
            on this machine.
        huggingface_hub.errors.HTTPError: the Hub was not reached, or refused.
    """
    # 1. A model in memory is saved first. Ours write the facts into their card themselves
    if not isinstance(model, (str, Path)):
        if facts is not None and isinstance(model, CheckpointingMixin):
            model.card_facts = facts
            facts = None

        with tempfile.TemporaryDirectory() as folder:
            name_base_of_adapters(model)
            model.save_pretrained(folder)
            write_better_card(Path(folder), facts, getattr(model, "config", None))
            return push(folder, repo_id, **kwargs)

    # 2. A folder is checked before anything is sent
    folder = Path(model)
    entries = ("config.json", "adapter_config.json", "custom_generate/generate.py")
    if not any(find_file(folder, entry) for entry in entries):
        raise ValueError(
            f"{folder} is no folder with a model: it holds none of {', '.join(entries)}, as files of its own. Give one "
            "that save_pretrained wrote."
        )

    # A damaged file would only fail on the machines of others
    published, _ = repository_files(folder)
    for name, file in published.items():
        if any(fnmatch(name, pattern) for pattern in MODEL_FILES):
            check_file(file)

    # 3. The folder, with our card and code where it lacks them
    card = better_card(folder, facts)
    return push_folder(folder, repo_id, card=card, others=missing_code(folder), **kwargs)


def missing_code(folder: Path) -> dict[str, bytes]:
    """Collect our code for a model in a folder without code, and a config.json that names it.

    Returns:
        name -> content. Empty where a folder has its code, or holds another model.
    """
    # Classes with an auto class are the ones that can be loaded by code in a repository
    config = read_json(folder, "config.json") or {}
    model_class = getattr(edlm_hf, architecture_of(config), None)
    is_ours = isinstance(model_class, type) and getattr(model_class, "_auto_class", None) is not None
    if "auto_map" in config or not is_ours:
        return {}

    # The file of the class, and all modules that it imports, in one flat folder
    source = Path(inspect.getfile(model_class))
    imported = map(Path, get_relative_import_files(source))
    contents = {file.name: file.read_bytes() for file in (source, *imported)}

    # auto_map tells the auto classes of transformers which file has the class
    config["auto_map"] = auto_map(model_class, model_class.config_class)
    contents["config.json"] = json.dumps(config, indent=2).encode()
    return contents


def architecture_of(config: dict) -> str:
    """Return the name of the class in a config.json, or an empty text."""
    return (config.get("architectures") or [""])[0]


def write_better_card(folder: Path, facts: CardFacts | None = None, config: PreTrainedConfig | None = None) -> None:
    """Write our card into a folder where its README.md is missing, blank or knows less.

    An adapter also gets the energy scope of its base.
    """
    keep_scope(folder, config)
    card = better_card(folder, facts, config)
    if card is not None:
        Path(folder, "README.md").write_text(card, encoding="utf-8")


def better_card(folder: Path, facts: CardFacts | None = None, config: PreTrainedConfig | None = None) -> str | None:
    """Return our card for a folder where its README.md is missing, blank or knows less. Else None."""
    readme = find_file(folder, "README.md")
    old = None if readme is None else readme.read_text(encoding="utf-8")

    # Without new facts, a card without blanks cannot become better
    if old is not None and BLANK not in old and facts is None:
        return None

    card = card_of_folder(folder, facts, old, config)
    if card is None or not replaces(card, old):
        return None
    return card


def card_of_folder(
    folder: Path, facts: CardFacts | None = None, old: str | None = None, config: PreTrainedConfig | None = None
) -> str | None:
    """Make our card for the model or adapter in a folder. None if it is not of this package.

    Args:
        old: the card that is there. Its base models are kept.
        config: the configuration of the model that was saved there, or of the model under an
            adapter. It knows where the model came from, and the folder of an adapter does not have
            it.
    """
    stored = read_json(folder, "config.json")
    adapter = read_json(folder, "adapter_config.json")

    # 1. An adapter, for a composite unless it says otherwise
    if stored is None and adapter is not None:
        mapping = adapter.get("auto_mapping") or {}
        architecture = mapping.get("base_model_class", "EDLMForMaskedDiffusion")
        if architecture not in KINDS:
            return None

        scope = scope_of_adapter(str(folder), {}) if config is None else None
        base = adapter.get("base_model_name_or_path")
        return model_card(architecture, config, facts, base_models=[base], adapter=True, energy_scope=scope)

    # 2. A model
    architecture = architecture_of(stored or {})
    if architecture not in KINDS:
        return None

    # The bases of a card that is there are the word of its author
    bases = []
    if old:
        bases = base_models_of(ModelCard(old, ignore_metadata_errors=True))
    elif config is not None:
        bases = origins(config)
    return model_card(architecture, load_config(str(folder)), facts, base_models=bases)


__all__ = ["missing_code", "push", "save_custom_generate", "write_better_card"]
