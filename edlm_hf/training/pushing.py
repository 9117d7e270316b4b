"""A push of a checkpoint to the Hub while the training goes on."""

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

UPLOADS = HfApi()  # runs its jobs in the background one after another


def push_in_background(folder: str | Path, repo_id: str, **options) -> Future:
    """Begin a `push_folder` and return at once. A failure is a warning."""
    future = UPLOADS.run_as_future(push_folder, folder, repo_id, **options)
    future.add_done_callback(warn_of_failure)
    return future


def warn_of_failure(future: Future) -> None:
    """Warn if a push has failed, which does not end the training."""
    if not future.cancelled() and future.exception() is not None:
        error = future.exception()
        logger.warning(f"A push to the Hub failed, and the training goes on: {error}")


def push_checkpoint(
    checkpoint: str | Path,
    repo_id: str,
    path_in_repo: str | None = None,
    **options,
) -> Future:
    """Begin to push the model of a checkpoint, and return at once.

    Args:
        checkpoint: a folder, which may be deleted meanwhile.
        repo_id: `user/name`.
        path_in_repo: folder of the repository for the whole checkpoint, from which a run can be
            resumed. It is left out unless given. `training_args.bin`, a pickle that nothing reads,
            is never part of it.
        options: of `push_folder`.
    """
    # Links on the same file system, which keep the files when the Trainer deletes the checkpoint
    checkpoint = Path(checkpoint)
    staging = Path(tempfile.mkdtemp(dir=checkpoint.parent, prefix=".push-"))

    # 1. The model, at the root of the repository
    files, _ = repository_files(checkpoint)
    for name, path in files.items():
        link_or_copy(path, staging / "model" / name)

    # 2. The whole checkpoint, in its folder
    resumable = {}
    if path_in_repo is not None:
        for path in files_to_resume_from(checkpoint):
            name = path.relative_to(checkpoint).as_posix()
            staged = staging / "whole" / name
            link_or_copy(path, staged)
            resumable[f"{path_in_repo}/{name}"] = staged

    # 3. Both in one commit, after which the staged files are deleted
    future = push_in_background(staging / "model", repo_id, others=resumable, **options)
    future.add_done_callback(lambda _: shutil.rmtree(staging))
    return future


def files_to_resume_from(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint and of the folders inside it."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.name != TRAINING_ARGS_NAME]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which takes no space where the file system can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


__all__ = ["push_checkpoint", "push_in_background"]
