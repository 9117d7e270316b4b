"""A push of a folder to the Hub: the files of a repository and their card, in one commit.

Everything is checked before anything is sent, and the folder is only read. A card that a person wrote or edited on the
Hub is not replaced by one of ours.
"""

import re
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from transformers.utils import logging

from edlm_hf.card_signatures import is_untouched, replaces
from edlm_hf.cards import is_hub_name, with_names
from edlm_hf.checkpoints import ships
from edlm_hf.hidden_secrets import hide_secrets
from edlm_hf.repository_files import check_no_secrets, read_json, repository_files

logger = logging.get_logger(__name__)

CARD = "README.md"
WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MOST_NAMES = 20  # of files that are left behind, in a message


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
    """Upload a folder in one commit: the repository has all of it or, after an interruption, none of it.

    The folder is only read. Files that do not belong into a model repository are left behind, with a warning that names
    them: the state of a training run, hidden files, links that lead out of the folder (see `repository_files`).

    Weights that are no longer part of the folder are removed from the repository (shards that a single file replaces,
    or the reverse). A README.md that somebody edited on the Hub stays, unless the one of the folder was written by hand
    as well.

    Args:
        repo_id: `user/name`, or `name` for the account of the token. It is made if it does not
            exist.
        private: make a new repository private. True is refused for one that exists and is public.
        revision: a branch, made from `main` if it does not exist.
        tags: tags that are added to those of the card.
        card: README.md to be, in place of the one in the folder.
        others: more files, name -> content or path. They replace files of the folder with the same
            name.

    Raises:
        ValueError: the repository is public although `private` was asked for, nobody could load the adapter, a file
            holds a token or a private key, or weights are a link that leads out of the folder.
        huggingface_hub.errors.HTTPError: the Hub was not reached, or refused.
    """
    # 1. What is uploaded. Whatever is wrong with it is found before the Hub is asked for anything
    check_references(folder)
    files, left = repository_files(folder)
    contents = {**files, **(others or {})}
    if card is not None:
        contents[CARD] = card.encode()
    check_no_secrets(contents, token if isinstance(token, str) else get_token())
    check_weights_are_here(folder, left)
    warn_of_files_left(left)

    # 2. Where it goes, and which files are there
    api = HfApi(token=token)
    repo_id = open_repository(api, repo_id, private, revision)
    stored = set(api.list_repo_files(repo_id, revision=revision))

    # 3. All files but the card, in the place of weights that are no longer part of the model
    operations = [CommitOperationAdd(name, contents[name]) for name in sorted(contents) if name != CARD]
    operations += [CommitOperationDelete(name) for name in stale_weights(files, stored)]

    # 4. The card, with the name of its repository in it
    if card is None and CARD in files:
        card = files[CARD].read_text(encoding="utf-8")
    if card is not None:
        card = with_names(card, repo_id, [tags] if isinstance(tags, str) else tags)
        old = stored_card(api, repo_id, revision) if CARD in stored else None
        if replaces(card, old) or not is_untouched(card):
            operations.append(CommitOperationAdd(CARD, card.encode()))

    return api.create_commit(
        repo_id,
        operations,
        commit_message=hide_secrets(commit_message or "Upload model"),
        commit_description=hide_secrets(commit_description or "") or None,
        revision=revision,
        create_pr=create_pr,
    )


def check_references(folder: str | Path) -> None:
    """Raise ValueError if a checkpoint refers to another one that is only on this machine."""
    config = read_json(folder, "config.json")
    adapter = read_json(folder, "adapter_config.json")

    # A composite may keep its energy by reference, and an adapter always does so with its base
    energy = (config or {}).get("energy_name_or_path")
    if energy is not None and not is_hub_name(energy):
        raise ValueError(
            f"The energy is kept by reference to {energy!r}, which is no repository of the Hub, so nobody else could "
            "load it. Push the energy first and refer to that, or store it inside (energy_by_reference=False)."
        )

    base = (adapter or {}).get("base_model_name_or_path")
    if config is None and adapter is not None and not (ships(base) or is_hub_name(base)):
        raise ValueError(
            f"The adapter's base model is {base!r}, which is no repository of the Hub, so nobody else could load it. "
            "Push the base model, and write its name to base_model_name_or_path in adapter_config.json."
        )


def check_weights_are_here(folder: str | Path, left: list[str]) -> None:
    """Raise ValueError if weights are among the files that are left behind, which are links then."""
    for name in left:
        if WEIGHTS.fullmatch(name):
            raise ValueError(
                f"{name} is a link that leads out of {folder}, and links are not followed. Put the file itself there."
            )


def warn_of_files_left(left: list[str]) -> None:
    """Name the files that are left behind, the first of them where there are many."""
    if not left:
        return

    # The log may go to a terminal, which a name must not steer
    names = [name if name.isprintable() else ascii(name) for name in left[:MOST_NAMES]]
    rest = ""
    if len(left) > MOST_NAMES:
        rest = f" and {len(left) - MOST_NAMES} more"
    logger.warning(f"Not uploaded, since it is no part of a model repository: {', '.join(names)}{rest}.")


def open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Make the repository and the branch where they do not exist yet, and return the full name of the repository.

    Raises:
        ValueError: `private` was asked for, but the repository exists and is public.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public. Make it private in its settings, or push without private.")

    # refs/pr/1 and the like are made by the Hub
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def stale_weights(files: dict[str, Path], stored: set[str]) -> list[str]:
    """List the stored weights that are no longer part of a model.

    The list is empty where the folder has no weights at all.
    """
    has_weights = any(WEIGHTS.fullmatch(name) for name in files)
    if not has_weights:
        return []

    # transformers would load a single file that is left over before the new shards
    no_longer_there = stored - files.keys()
    return sorted(name for name in no_longer_there if WEIGHTS.fullmatch(name))


def stored_card(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Download README.md of a repository."""
    path = api.hf_hub_download(repo_id, CARD, revision=revision)
    return Path(path).read_text(encoding="utf-8")


__all__ = ["check_references", "push_folder"]
