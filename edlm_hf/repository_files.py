"""The files of a folder that make a repository of the Hub. Everything else stays where it is.

Files are chosen by name: those of models, adapters, tokenizers and their cards. The state of a training,
files that other programs left in the folder, and links to files elsewhere are not among them.
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
# The state of a training, which resumes from it
TRAINING = r"checkpoint-|last-checkpoint|recipe\.json"
TRAINING += r"|(trainer_state|training_args|optimizer|scheduler|rng_state)[^/]*\.json"
# Texts in which a secret may have been left: a private key, or a token (not the row of one letter of an example)
TEXT = re.compile(r".*\.(json|jinja|py|md|txt|svg)|(LICEN[CS]E|NOTICE).*")
SECRET = re.compile(rb"hf_(oauth_|jwt_)?(?!(.)\2+\b)[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")


def is_published(name: str) -> bool:
    """Whether a file of this name, relative to its folder with slashes, belongs into a repository."""
    # A hidden folder hides everything in it, and a folder of a training run too
    for part in name.split("/"):
        if part.startswith(".") or re.match(TRAINING, part):
            return False
    return bool(PUBLISHED.fullmatch(name)) and not is_secret_name(Path(name).stem)


def find_file(folder: str | Path, name: str) -> Path | None:
    """Return the file of a name in a folder. None if there is none, or a link leads to a private file.

    A link may lead to another published file of the folder, and in a snapshot of the Hub's cache to
    one of its blobs.
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
    """Read a JSON file of a folder. None where the folder has no such file."""
    path = find_file(folder, name)
    if path is None:
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def repository_files(folder: str | Path) -> tuple[dict[str, Path], list[str]]:
    """Divide a folder into the files that a repository gets and the rest.

    Returns:
        name -> file to read, and the names of all others. A folder in it of which nothing is
        published is named once, with a slash after its name.
    """
    root = Path(folder).resolve()
    published = {}
    left = []

    for entry in sorted(root.iterdir()):
        # The entry itself, or the files of a folder. Deeper folders are not published
        is_folder = entry.is_dir() and not entry.is_symlink()
        paths = sorted(entry.iterdir()) if is_folder else [entry]
        names = [path.relative_to(root).as_posix() for path in paths]

        # The file behind a link, None where that is not to be read
        targets = {name: find_file(root, name) for name in names if is_published(name)}
        readable = {name: target for name, target in targets.items() if target is not None}
        published.update(readable)

        if is_folder and not readable:
            left.append(f"{entry.name}/")
        else:
            left.extend(name for name in names if name not in readable)

    return published, left


def check_no_secrets(contents: dict[str, Path | bytes], token: str | None = None) -> None:
    """Raise ValueError if a text that is about to be published holds a token or a private key.

    Args:
        contents: name -> file or its content.
        token: a token that must be in none of them, of any shape.
    """
    for name, content in contents.items():
        if not TEXT.fullmatch(Path(name).name):
            continue

        text = content if isinstance(content, bytes) else content.read_bytes()
        has_token = bool(token) and token.encode() in text
        if has_token or SECRET.search(text):
            raise ValueError(
                f"{name} holds a token or a private key, which everybody could read. Remove it from the file, make the "
                "token invalid at https://hf.co/settings/tokens if it was shown to anybody, and push again."
            )


__all__ = ["check_no_secrets", "find_file", "is_published", "read_json", "repository_files"]
