"""Which checkpoints of a run are whole, so that training goes on from them.

A checkpoint that was written to its end has a manifest of its files. Where the writing of one was
interrupted, or a file was damaged later, an earlier one is taken.
"""

import itertools
import json
import zlib
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from edlm_hf.files import fault_of, to_json, write_atomically

logger = logging.get_logger(__name__)

MANIFEST = "complete.json"  # the last file of a checkpoint: sizes and checksums of all others
PRESENT_WEIGHTS = "present_weights.safetensors"  # beside the average, which is the model
DAMAGED = "damaged-"  # prefix of the name of a checkpoint that was set aside
CHUNK = 2**22  # bytes of a file that are read at a time

# Files of which a checkpoint needs at least one of each kind. FSDP and DeepSpeed have their own.
WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "pytorch_model_fsdp_*",
    "global_step*",
)
NEEDED = {
    "the weights": WEIGHTS,
    "the state of the optimizer": ("optimizer*", "global_step*"),
    "the state of the learning rate": ("scheduler.pt", "global_step*"),
    "the state of random numbers": ("rng_state*.pth",),
    "the state of the run": (TRAINER_STATE_NAME,),
}


def write_manifest(checkpoint: str | Path) -> None:
    """Write the file that says that a checkpoint is complete, and how its files are recognised."""
    # Name inside the checkpoint -> size and checksum
    fingerprints = {}
    for file in files_of(checkpoint):
        name = file.relative_to(checkpoint).as_posix()
        fingerprints[name] = fingerprint(file)

    content = to_json(fingerprints, indent=1).encode()
    write_atomically(Path(checkpoint, MANIFEST), content)


def fingerprint(file: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    size = 0
    checksum = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}


def files_of(checkpoint: str | Path) -> list[Path]:
    """The files of a checkpoint and of its folders, without the manifest."""
    files = (path for path in Path(checkpoint).rglob("*") if path.is_file())
    return sorted(file for file in files if file.name != MANIFEST)


def fault_of_checkpoint(checkpoint: str | Path, has_average: bool = False) -> str | None:
    """Describe what keeps training from going on exactly from a checkpoint. None if it is whole.

    Args:
        checkpoint: a folder.
        has_average: the run averages its weights. Then the checkpoint has to hold the present
            weights beside them.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return f"{folder} is not there"

    fault = missing_part(folder, has_average) or damaged_file(folder)
    if fault is not None:
        return fault

    # JSON that can be read, but is not the state of a run
    state = json.loads((folder / TRAINER_STATE_NAME).read_text())
    if "global_step" not in state:
        return f"{folder / TRAINER_STATE_NAME} is damaged: it says no step"
    return None


def missing_part(folder: Path, has_average: bool) -> str | None:
    """Name a part of a checkpoint of which no file is there."""
    needed = dict(NEEDED)
    is_sharded = any(folder.glob("pytorch_model_fsdp_1*"))  # with the average as its second model
    if has_average and not is_sharded:
        needed["the weights beside their average"] = (PRESENT_WEIGHTS,)

    for part, patterns in needed.items():
        files = {file for pattern in patterns for file in folder.glob(pattern)}

        # The present weights are a .safetensors file too, but not the model
        if patterns == WEIGHTS:
            files.discard(folder / PRESENT_WEIGHTS)
        if not files:
            return f"{folder} lacks {part} ({patterns[0]})"
    return None


def damaged_file(folder: Path) -> str | None:
    """Name a file of a checkpoint that is missing or differs from the one that was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:  # of an earlier version, or interrupted before the manifest
        manifest = {}
    except (OSError, ValueError):
        return f"{folder / MANIFEST} is damaged"

    for name, expected in manifest.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if fingerprint(file) != expected:
            return f"{file} is damaged: it is not what was written"

    # Without a manifest the formats of the files have to do
    if not manifest:
        for file in files_of(folder):
            if fault := fault_of(file):
                return f"{file} {fault}"
    return None


def is_unfinished(checkpoint: Path) -> bool:
    """Whether the writing of a checkpoint was interrupted: the last files are missing or cut."""
    has_manifest = (checkpoint / MANIFEST).exists()
    return not has_manifest and fault_of(checkpoint / TRAINER_STATE_NAME) is not None


def last_complete_checkpoint(
    output_dir: str | Path,
    has_average: bool = False,
    set_aside: bool = False,
) -> str | None:
    """Find the newest `checkpoint-N` that is whole, or None where none was written to its end.

    A checkpoint whose writing was interrupted is passed over. A damaged one is passed over with a
    warning.

    Args:
        output_dir: the folder of the run.
        has_average: as in `fault_of_checkpoint`.
        set_aside: rename damaged checkpoints, so that none is counted or written into when training
            goes on before them.

    Raises:
        ValueError: there are only damaged ones.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in checkpoints_from_newest(output_dir):
        if is_unfinished(checkpoint):
            continue

        # Only when a whole one is found is it known from where training goes on
        fault = fault_of_checkpoint(checkpoint, has_average)
        if fault is None:
            pass_over(damaged, checkpoint, set_aside)
            return str(checkpoint)
        damaged[checkpoint] = fault

    if damaged:
        raise ValueError(
            f"No checkpoint in {output_dir} is whole: {'; '.join(damaged.values())}. Put back what "
            "is missing, or delete these checkpoints to begin anew."
        )
    return None


def checkpoints_from_newest(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N`, the largest N first."""
    # By the number, not by the name: checkpoint-1000 is newer than checkpoint-900
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdigit() and folder.is_dir():
            steps[folder] = int(step)
    return sorted(steps, key=steps.get, reverse=True)


def pass_over(damaged: dict[Path, str], whole: Path, set_aside: bool) -> None:
    """Warn of damaged checkpoints with their faults, and rename them if `set_aside`."""
    for checkpoint, fault in damaged.items():
        logger.warning(f"{fault}: going on from {whole}.")
        if set_aside:
            checkpoint.rename(free_name(checkpoint))


def free_name(checkpoint: Path) -> Path:
    """`damaged-checkpoint-N` beside a checkpoint, with `.1`, `.2`, ... if that is taken."""
    path = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
    numbered = (path.with_name(f"{path.name}.{i}") for i in itertools.count(1))
    return next(path for path in itertools.chain([path], numbered) if not path.exists())


def named_checkpoint(
    given: str | bool | None,
    output_dir: str | Path,
    has_average: bool = False,
) -> str | None:
    """Find the checkpoint that `resume_from_checkpoint` names, and check that it is whole.

    Args:
        given: a path, True for the newest one of `output_dir`, or None.
        output_dir: the folder of the run.
        has_average: as in `fault_of_checkpoint`.

    Raises:
        ValueError: it lacks a part or is damaged, or there is none.
    """
    if not given:
        return None

    if given is True:
        newest = last_complete_checkpoint(output_dir, has_average)
        if newest is None:
            problem = f"resume_from_checkpoint is True, but {output_dir} holds no checkpoint"
            raise ValueError(f"{problem}. Leave it out.")
        return newest

    if fault := fault_of_checkpoint(given, has_average):
        raise ValueError(f"Training cannot go on from {given}: {fault}. Give one that is whole.")
    return given


__all__ = [
    "MANIFEST",
    "PRESENT_WEIGHTS",
    "fault_of_checkpoint",
    "last_complete_checkpoint",
    "named_checkpoint",
    "write_manifest",
]
