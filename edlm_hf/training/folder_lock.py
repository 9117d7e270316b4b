"""The lock of a run's folder, in which one process works at a time."""

import errno
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.utils import logging

from edlm_hf.files import to_json, write_atomically

logger = logging.get_logger(__name__)

LOCK = ".run.lock"
HOLDER = ".run.json"  # names the process that holds the lock

# Answers of file systems that have no locks
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class FolderLock:
    """A context that holds a folder for one run.

    The system lets go of the lock when the process ends, however that happens. Only processes that
    ask are kept out. Where a file system has no locks nobody is kept out, with a warning.

    Args:
        folder: made if it does not exist.

    Raises:
        ValueError: another run works in the folder.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __enter__(self) -> "FolderLock":
        # No waiting: a run lasts for hours
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / LOCK, timeout=0)

        try:
            self.lock.acquire()
        except Timeout:
            raise ValueError(
                f"Another run works in {self.folder} ({self.holder()}). Wait until it has ended, "
                "or give another output_dir."
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            advice = "make sure that one run works in it alone"
            logger.warning(f"The file system of {self.folder} has no locks: {advice}.")
        else:
            # For the message of a run that comes second
            holder = {"process": os.getpid(), "host": socket.gethostname()}
            write_atomically(self.folder / HOLDER, to_json(holder).encode())
        return self

    def __exit__(self, *error) -> None:
        self.lock.release()

    def holder(self) -> str:
        """Describe the process that holds the lock."""
        try:
            holder = json.loads((self.folder / HOLDER).read_text())
            return f"process {holder['process']} on {holder['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "a process that has just begun"


__all__ = ["FolderLock"]
