"""The folder of a run: one process at a time works in it, and training goes on from a checkpoint that is whole."""

import errno
import json
import os
import socket
import zlib
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from edlm_hf.files import fault_of, to_json, write_atomically

logger = logging.get_logger(__name__)

LOCK = ".run.lock"
HOLDER = ".run.json"  # who holds the lock
MANIFEST = "complete.json"  # in a checkpoint that was written to its end: its files, their sizes and checksums
PRESENT_WEIGHTS = "present_weights.safetensors"
DAMAGED = "damaged-"  # in front of the name of a checkpoint that was set aside

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "pytorch_model_fsdp_*", "global_step*")
OPTIMIZER = ("optimizer*", "global_step*")
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


# ---------------------------------------------------------------------------------------------------------- the lock


class FolderLock:
    """Holds a folder for one run at a time; the system lets go of it when the process ends, however that happens.

    Only processes that ask are kept out. A file system without locks keeps out nobody, which is said.

    Raises:
        ValueError: another run works in the folder.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __enter__(self) -> "FolderLock":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise ValueError(
                f"Another run works in {self.folder} ({self.holder()}). Wait until it has ended, or give another "
                "output_dir."
            ) from None
        except (OSError, NotImplementedError) as error:
            if not isinstance(error, NotImplementedError) and error.errno not in NO_LOCKS:
                raise
            logger.warning(f"The file system of {self.folder} has no locks: make sure that one run works in it alone.")
        else:
            holder = {"process": os.getpid(), "host": socket.gethostname()}
            write_atomically(self.folder / HOLDER, to_json(holder).encode())
        return self

    def __exit__(self, *error) -> None:
        self.lock.release()

    def holder(self) -> str:
        try:
            holder = json.loads((self.folder / HOLDER).read_text())
            return f"process {holder['process']} on {holder['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "a process that has just begun"


# ---------------------------------------------------------------------------------------------------- whole checkpoints


def write_manifest(checkpoint: str | Path) -> None:
    """Say in a checkpoint that it is complete, and how its files can be recognised."""
    files = {file.relative_to(checkpoint).as_posix(): fingerprint(file) for file in files_of(checkpoint)}
    write_atomically(Path(checkpoint, MANIFEST), to_json(files, indent=1).encode())


def fingerprint(file: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    size = checksum = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(2**22):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}


def files_of(checkpoint: str | Path) -> list[Path]:
    return sorted(file for file in Path(checkpoint).rglob("*") if file.is_file() and file.name != MANIFEST)


def fault_of_checkpoint(checkpoint: str | Path, has_average: bool = False) -> str | None:
    """What a checkpoint lacks that training needs to go on as if it had not been interrupted; None if it is whole.

    Args:
        has_average: the run averages its weights, so that those it goes on with stand beside them.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return f"{folder} is not there"
    needed = {
        "the weights": WEIGHTS,
        "the state of the optimizer": OPTIMIZER,
        "the state of the learning rate": ("scheduler.pt", "global_step*"),
        "the state of random numbers": ("rng_state*.pth",),
        "the state of the run": (TRAINER_STATE_NAME,),
    }
    if has_average and not any(folder.glob("pytorch_model_fsdp_1*")):
        needed["the weights beside their average"] = (PRESENT_WEIGHTS,)
    for part, patterns in needed.items():
        present = {file for pattern in patterns for file in folder.glob(pattern)}
        if part == "the weights":
            present -= {folder / PRESENT_WEIGHTS}
        if not present:
            return f"{folder} lacks {part} ({patterns[0]})"

    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:  # of an earlier version, or interrupted before its last word
        manifest = {}
    except (OSError, ValueError):
        return f"{folder / MANIFEST} is damaged"
    for name, expected in manifest.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if fingerprint(file) != expected:
            return f"{file} is damaged: it is not what was written"
    for file in () if manifest else files_of(folder):
        if fault := fault_of(file):
            return f"{file} {fault}"
    if "global_step" not in json.loads((folder / TRAINER_STATE_NAME).read_text()):
        return f"{folder / TRAINER_STATE_NAME} is damaged: it says no step"
    return None


def is_unfinished(checkpoint: Path) -> bool:
    """Whether writing a checkpoint was interrupted: what comes last is not there, or half."""
    return not (checkpoint / MANIFEST).exists() and fault_of(checkpoint / TRAINER_STATE_NAME) is not None


def last_complete_checkpoint(output_dir: str | Path, has_average: bool = False, set_aside: bool = False) -> str | None:
    """The newest `checkpoint-N` that is whole; None where none was written to its end.

    One whose writing was interrupted is passed over. One that is damaged is passed over too, which is said.

    Args:
        has_average: as for `fault_of_checkpoint`. set_aside: rename the damaged ones, so that none is counted or
            written into when training goes on before them.

    Raises:
        ValueError: there are only damaged ones.
    """
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = [folder for folder in folders if folder.name.rpartition("-")[2].isdigit() and folder.is_dir()]
    newest_first = sorted(numbered, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)
    damaged: dict[Path, str] = {}
    for folder in newest_first:
        if is_unfinished(folder):
            continue
        fault = fault_of_checkpoint(folder, has_average)
        if fault is None:
            for other, reason in damaged.items():
                logger.warning(f"{reason}: going on from {folder}.")
                if set_aside:
                    other.rename(free_name(other))
            return str(folder)
        damaged[folder] = fault
    if damaged:
        raise ValueError(
            f"No checkpoint in {output_dir} is whole: {'; '.join(damaged.values())}. Put back what is missing, or "
            "delete these checkpoints to begin anew."
        )
    return None


def named_checkpoint(given: str | bool | None, output_dir: str | Path, has_average: bool = False) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names, which is whole: a path, or True for the newest.

    Raises:
        ValueError: it lacks a part or is damaged, or there is none.
    """
    if given is True:
        if (found := last_complete_checkpoint(output_dir, has_average)) is None:
            raise ValueError(f"resume_from_checkpoint is True, but {output_dir} holds no checkpoint. Leave it out.")
        return found
    if given and (fault := fault_of_checkpoint(given, has_average)):
        raise ValueError(f"Training cannot go on from {given}: {fault}. Give one that is whole.")
    return given or None


def free_name(checkpoint: Path) -> Path:
    """`damaged-checkpoint-N` beside a checkpoint, with a number behind it if there is one already."""
    names = [f"{DAMAGED}{checkpoint.name}", *(f"{DAMAGED}{checkpoint.name}.{i}" for i in range(1, 1000))]
    return next(checkpoint.with_name(name) for name in names if not checkpoint.with_name(name).exists())


__all__ = ["FolderLock", "fault_of_checkpoint", "last_complete_checkpoint", "named_checkpoint", "write_manifest"]
