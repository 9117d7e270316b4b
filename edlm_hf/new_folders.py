"""New folders that appear when everything in them is complete, or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_new_folder(folder: str | Path, argument: str) -> Path:
    """Return the absolute path of a folder that does not exist yet or is empty.

    Args:
        argument: name of the argument that gave the folder, for the message.

    Raises:
        ValueError: something is there.
    """
    # An empty folder is taken, as `mkdir` and mounted disks leave one
    target = Path(folder).resolve()
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_empty_folder:
        raise ValueError(f"{argument} {folder} exists and is not an empty folder. Give a new folder.")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write a folder at, and move that to `target` in the end.

    After an error nothing of it is left.
    """
    # Beside the target, so that both are on one disk, where moving takes one step
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        complete = Path(staging, target.name)
        yield complete

        # An empty folder makes way. One that was filled meanwhile stays, and rmdir raises
        if target.exists():
            target.rmdir()
        complete.rename(target)


__all__ = ["check_new_folder", "new_folder"]
