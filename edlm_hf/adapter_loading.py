"""Adapters by name: folders and repositories that hold an adapter of PEFT, and no model.

An adapter is merged into its base when it is loaded, so that it generates, is measured and is saved like any model. Its
base may be a checkpoint that ships.
"""

import json
import re
import warnings
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from edlm_hf.checkpoints import locate, portable_name

DESCRIPTION = "adapter_config.json"

WEIGHTS = "adapter_model.safetensors"

# The energy scope that an adapter was trained for, {"energy_scope": "revealed"}: PEFT knows no such thing
SCOPE = "energy_scope.json"

# Arguments of from_pretrained that concern the repository of the adapter alone
OF_ONE_REPOSITORY = ("revision", "subfolder", "trust_remote_code")


def file_of(name: str, file: str, location: dict) -> Path | None:
    """A small file of a folder or repository, None where it has none of this name."""
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    try:
        path = cached_file(locate(name), file, **quiet, **location)
    except (OSError, ValueError):
        return None
    return path and Path(path)


def base_of_adapter(name: str, location: dict) -> str | None:
    """The base model of an adapter, None if `name` is a model or nothing. A base may be an adapter too.

    Args:
        location: arguments of `from_pretrained` that say where the files are.

    Raises:
        ValueError: an adapter does not name its base, or is its own base.
    """
    base = named_base(name, location)
    seen = {name}
    following = base
    while following is not None:
        if following in seen:
            raise ValueError(
                f"{name} is an adapter of {base}, but {following} is its own base. Name a model in {DESCRIPTION}."
            )
        seen.add(following)
        following = named_base(following, arguments_of_base(location))
    return base


def named_base(name: str, location: dict) -> str | None:
    """The base model that an adapter names, None if `name` is a model or nothing."""
    if file_of(name, "config.json", location) is not None:
        return None
    path = file_of(name, DESCRIPTION, location)
    if path is None:
        return None

    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    if not isinstance(base, str):
        raise ValueError(f"{name} is an adapter, but its {DESCRIPTION} names no base model. Load it with PEFT.")
    return base


def arguments_of_base(kwargs: dict) -> dict:
    """Arguments of `from_pretrained` for the base of an adapter.

    Access to the Hub holds for the base too. The revision is that of the adapter's repository, and
    whoever trusts the code of that one has not trusted the code of another.
    """
    return {key: value for key, value in kwargs.items() if key not in OF_ONE_REPOSITORY}


def keep_scope(folder: Path, config: PreTrainedConfig | None) -> None:
    """Write the energy scope of a model beside its adapter, or its adapters in folders of their names."""
    scope = getattr(config, "energy_scope", None)
    if scope is None:
        return
    for description in (*folder.glob(DESCRIPTION), *folder.glob(f"*/{DESCRIPTION}")):
        description.with_name(SCOPE).write_text(json.dumps({"energy_scope": scope}) + "\n", encoding="utf-8")


def scope_of_adapter(name: str, location: dict) -> str | None:
    """The energy scope that an adapter was trained for, None if nothing says it.

    Adapters of 0.1.0 have it in the code of their card alone, adapters that PEFT saved nowhere.

    Raises:
        ValueError: the file of the scope is damaged.
    """
    path = file_of(name, SCOPE, location)
    if path is not None:
        try:
            return json.loads(path.read_text(encoding="utf-8"))["energy_scope"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'The {SCOPE} of {name} is damaged. It should be {{"energy_scope": "sequence"}}, or "revealed".'
            ) from error

    path = file_of(name, "README.md", location)
    card = path.read_text(encoding="utf-8", errors="replace") if path else ""
    found = re.search(r'energy_scope="(\w+)"', card)
    return found and found[1]


def with_adapter(base: PreTrainedModel, name: str, location: dict, is_trainable: bool = False):
    """Put the adapter `name` on its base.

    Returns:
        a `PeftModel`.

    Raises:
        ValueError: it does not fit, or its weights are a pickle.
    """
    from peft import PeftModel

    if file_of(name, WEIGHTS, location) is None:
        raise ValueError(
            f"The adapter {name} has no {WEIGHTS}. An adapter_model.bin would be a pickle, which is not read: "
            "load it with PEFT where you trust it, and save it again."
        )
    try:
        with warnings.catch_warnings():
            # Of transformers' names, which PEFT asks by the old ones
            warnings.simplefilter("ignore", FutureWarning)
            return PeftModel.from_pretrained(base, locate(name), is_trainable=is_trainable, **location)
    except (RuntimeError, TypeError, OSError) as error:
        raise ValueError(f"The adapter {name} does not fit its base: {' '.join(str(error).split())[:300]}") from error


def name_base_of_adapters(model) -> None:
    """Let adapters name a base that ships with the package by its name, not by its folder on this machine."""
    for config in (getattr(model, "peft_config", None) or {}).values():
        if config.base_model_name_or_path:
            config.base_model_name_or_path = portable_name(config.base_model_name_or_path)


__all__ = [
    "arguments_of_base",
    "base_of_adapter",
    "keep_scope",
    "name_base_of_adapters",
    "scope_of_adapter",
    "with_adapter",
]
