"""A checkpoint on its way to the Hub while the training goes on."""

import os
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from edlm_hf.pushing import push_folder
from edlm_hf.repository_files import repository_files

logger = logging.get_logger(__name__)
UPLOADS = HfApi()  # whose pushes in the background come one after another


def push_in_background(folder: str | Path, repo_id: str, **options) -> Future:
    """`push_folder` while the training goes on. A failure is a warning."""
    future = UPLOADS.run_as_future(push_folder, folder, repo_id, **options)
    future.add_done_callback(tell_failure)
    return future


def tell_failure(future: Future) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.warning(f"A push to the Hub failed, and the training goes on: {future.exception()}")


def push_checkpoint(checkpoint: str | Path, repo_id: str, place: str | None = None, **options) -> Future:
    """Begin to push the model of a checkpoint, and return at once.

    Args:
        checkpoint: a folder, which may be deleted meanwhile.
        place: folder of the repository for the whole checkpoint, with what a run needs to go on from it. None unless
            given. `training_args.bin`, a pickle that nothing reads, is not part of it.
        options: of `push_folder`.
    """
    checkpoint = Path(checkpoint)
    staging = Path(tempfile.mkdtemp(dir=checkpoint.parent, prefix=".push-"))

    # The model, at the root of the repository
    files, _ = repository_files(checkpoint)
    for name, path in files.items():
        link_or_copy(path, staging / "model" / name)

    # All of the checkpoint, in its place
    resumable = {}
    for path in checkpoint.rglob("*") if place is not None else ():
        if path.is_file() and not path.is_symlink() and path.name != TRAINING_ARGS_NAME:
            name = path.relative_to(checkpoint).as_posix()
            resumable[f"{place}/{name}"] = staging / "whole" / name
            link_or_copy(path, staging / "whole" / name)

    future = push_in_background(staging / "model", repo_id, others=resumable, **options)
    future.add_done_callback(lambda _: shutil.rmtree(staging))
    return future


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, which takes no space where the file system can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


__all__ = ["push_checkpoint", "push_in_background"]
