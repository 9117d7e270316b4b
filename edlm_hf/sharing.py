"""The card and the careful push that our models add to `save_pretrained` and `push_to_hub` of transformers.

The code that travels with a checkpoint has none of this. `edlm_hf/__init__.py` sets this module as the `sharing` of the
model classes, which call `save` and `push` where it is set and act as every model of transformers where it is not.

transformers replaces README.md by a generic text when it pushes. Here ours is written beside the weights and pushed
with them, in one commit, and a card that a person wrote or edited is not replaced.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import PreTrainedConfig, PreTrainedModel

from edlm_hf.card_signatures import replaces
from edlm_hf.cards import model_card
from edlm_hf.pushing import CARD, push_folder
from edlm_hf.repository_files import read_json

PUSH_ARGUMENTS = ("private", "token", "revision", "create_pr")


def save(
    model: PreTrainedModel,
    save_plainly: Callable[..., None],
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: dict | None = None,
    push_to_hub: bool = False,
    *args,
    **kwargs,
) -> None:
    """Save a model as transformers does, with README.md beside the weights.

    A README.md that says more or was edited stays (see `replaces`). The push comes last, so that the folder is complete
    whether it succeeds or not.

    Args:
        save_plainly: `save_pretrained` of transformers for this model, which gets all arguments but `push_to_hub`.
    """
    # Without the push of transformers, which would come before the card. The other processes write nothing
    save_plainly(save_directory, is_main_process, state_dict, False, *args, **kwargs)
    if not is_main_process or not Path(save_directory).is_dir():
        return

    # The card
    card = card_of(model, save_directory)
    path = Path(save_directory, CARD)
    old = path.read_text(encoding="utf-8") if path.exists() else None
    if replaces(card, old):
        path.write_text(card, encoding="utf-8")

    # The push
    if push_to_hub:
        repo_id = kwargs.get("repo_id") or Path(save_directory).name
        options = {name: kwargs[name] for name in PUSH_ARGUMENTS if name in kwargs}
        push_folder(save_directory, repo_id, commit_message=kwargs.get("commit_message"), **options)


def push(model: PreTrainedModel, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs) -> CommitInfo:
    """Push the files of a model with its card, in one commit.

    Args:
        kwargs: as in transformers, and of `push_folder`.
    """
    kwargs.setdefault("commit_message", f"Upload {type(model).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return push_folder(folder, repo_id, **kwargs)


def card_of(model: PreTrainedModel, folder: str | Path) -> str:
    """Make the card of a model, or of the adapter on it, that has been saved to a folder."""
    # transformers then saves the adapter alone, whose file names its base
    adapter = bool(getattr(model, "_hf_peft_config_loaded", False))
    bases = origins(model.config)
    if adapter:
        bases = [read_json(folder, "adapter_config.json").get("base_model_name_or_path")]

    # FSDP puts its name before that of the class it wraps
    return model_card(
        type(model).__name__.removeprefix("FSDP"),
        model.config,
        model.card_facts,
        base_models=bases,
        adapter=adapter,
        tags=model.model_tags,
    )


def origins(config: PreTrainedConfig) -> list[str]:
    """Collect the names and paths from which a model and its parts were loaded, each once."""
    parts = [getattr(config, name, None) for name in ("denoiser_config", "energy_config")]
    names = [getattr(part, "_name_or_path", None) for part in (config, *parts)]
    names.append(getattr(config, "energy_name_or_path", None))

    # In this order, the model itself first
    known = [name for name in names if name]
    return list(dict.fromkeys(known))


__all__ = ["origins", "push", "save"]
