"""Which files of a folder a repository of the Hub consists of; everything else stays where it is.

Chosen are the files that models, adapters, tokenizers and their cards are made of, by name. Neither what a training run
needs for going on is among them, nor what other programs left in the folder, nor what a link brings in from elsewhere.
"""

import json
import os
import re
from pathlib import Path

from edlm_hf.hidden_secrets import is_secret_name

PICTURE = r"\.(png|jpe?g|gif|svg|webp)"
PUBLISHED = re.compile(
    rf"""
    model(\.\w+)?(-\d{{5}}-of-\d{{5}})?\.safetensors | pytorch_model(-\d{{5}}-of-\d{{5}})?\.bin         # weights
    | ([^/]+/)? adapter_(config\.json | model\.(safetensors|bin))                                 # one, or several
    | [^/]+\.(json|jinja|tiktoken|py|md|txt) | [^/]*(tokenizer|sentencepiece|spiece|spm|bpe)[^/]*\.model
    | [^/]+{PICTURE} | (LICEN[CS]E|NOTICE)[^/]*
    | custom_generate/[^/]+\.(py|txt) | additional_chat_templates/[^/]+\.jinja
    | (assets|figures|images|plots)/[^/]+{PICTURE}
    """,
    re.VERBOSE,
)
# Of a training run, with what makes it go on
TRAINING = r"checkpoint-|last-checkpoint|recipe\.json"
TRAINING += r"|(trainer_state|training_args|optimizer|scheduler|rng_state)[^/]*\.json"
# Texts in which a secret may have been left: a private key, or a token (not the row of one letter of an example)
TEXT = re.compile(r".*\.(json|jinja|py|md|txt|svg)|(LICEN[CS]E|NOTICE).*")
SECRET = re.compile(rb"hf_(oauth_|jwt_)?(?!(.)\2+\b)[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")


def is_published(name: str) -> bool:
    """Whether a file of this name, relative to its folder with slashes, belongs into a repository."""
    for part in name.split("/"):
        if part.startswith(".") or re.match(TRAINING, part):
            return False
    return bool(PUBLISHED.fullmatch(name)) and not is_secret_name(Path(name).stem)


def find_file(folder: str | Path, name: str) -> Path | None:
    """The file of a name in a folder. None if there is none, or if a link leads to one that is not for everybody.

    A link may lead to another published file of the folder. Those in a snapshot of the Hub's cache lead to its blobs.
    """
    root = Path(folder).resolve()
    target = Path(os.path.realpath(root / name))
    if not target.is_file():  # links in a circle are none
        return None

    if target.is_relative_to(root):
        return target if is_published(target.relative_to(root).as_posix()) else None

    # models--user--name/snapshots/COMMIT/config.json -> models--user--name/blobs/HASH
    is_blob = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    return target if is_blob else None


def read_json(folder: str | Path, name: str) -> dict | None:
    """The content of a JSON file of a folder, None where the folder has no such file."""
    path = find_file(folder, name)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def repository_files(folder: str | Path) -> tuple[dict[str, Path], list[str]]:
    """What a repository gets of a folder, name -> file to read, and the names of what is left behind.

    A folder in it that is left behind as a whole has a slash after its name.
    """
    root = Path(folder).resolve()
    files, left = {}, []

    for entry in sorted(root.iterdir()):
        is_folder = entry.is_dir() and not entry.is_symlink()
        paths = sorted(entry.iterdir()) if is_folder else [entry]
        names = [path.relative_to(root).as_posix() for path in paths]

        targets = {name: find_file(root, name) for name in names if is_published(name)}
        found = {name: target for name, target in targets.items() if target is not None}
        files |= found

        if is_folder and not found:
            left.append(f"{entry.name}/")
        else:
            left += [name for name in names if name not in found]

    return files, left


def check_no_secrets(contents: dict[str, Path | bytes], token: str | None = None) -> None:
    """Raise ValueError if a text that is about to be published holds a token or a private key.

    Args:
        contents: name -> file or its content. token: one that must be in none of them, whatever it looks like.
    """
    for name, content in contents.items():
        if not TEXT.fullmatch(Path(name).name):
            continue

        text = content if isinstance(content, bytes) else content.read_bytes()
        if SECRET.search(text) or (token and token.encode() in text):
            raise ValueError(
                f"{name} holds a token or a private key, which everybody could read. Remove it from the file, make the "
                "token invalid at https://hf.co/settings/tokens if it was shown to anybody, and push again."
            )


__all__ = ["check_no_secrets", "find_file", "is_published", "read_json", "repository_files"]
