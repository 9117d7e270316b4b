"""Which failures a user can mend, and the one line in which a command explains them.

All other failures are mistakes of this package, and keep their traceback.
"""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_LINE = 600  # characters: some libraries list every model type that they know

# Parts of messages of torch and safetensors
NOT_WRITTEN = "inline_container|iostream|PytorchStreamWriter|No space left|Disk quota|os error"
NO_MEMORY = "out of memory|not enough memory|can't allocate memory|Unable to allocate"

MAKE_ROOM = "Make room there, or give another folder."
# Reasons of the system for which nothing more can be written
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def explanation(error: BaseException) -> str | None:
    """Explain a failure that the user can mend in one line. Return None for any other."""
    from huggingface_hub.errors import HTTPError

    # torch raises a RuntimeError, which is a mistake of ours in all other cases but one
    if is_out_of_memory(error):
        advice = "Use a smaller batch, a shorter text or a smaller model."
        return f"There is not enough memory: {one_line(error)} {advice}"

    # Some libraries raise RuntimeError for a package that an option needs and that is not installed
    asks_to_install = isinstance(error, RuntimeError) and "pip install" in str(error)
    if asks_to_install or isinstance(error, (ImportError, ValueError, OSError, HTTPError)):
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """Return the text of an error in one line of at most 600 characters, or its type."""
    # Some errors have no text, such as a bare MemoryError
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= LONGEST_LINE:
        return text
    return f"{text[:LONGEST_LINE].rstrip()} ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its accelerator was not enough."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error)) is not None


@contextmanager
def writing(folder: str | Path, advice: str = MAKE_ROOM) -> Iterator[None]:
    """Name the folder that cannot be written, which the libraries do not.

    Raises:
        OSError: something inside could not write. It gives the folder, the reason and `advice`.
    """
    try:
        yield
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        problem = f"{folder} cannot be written: {reason}{free_space(folder)}."
        raise OSError(f"{problem} {advice}") from error


def why_not_written(error: Exception) -> str | None:
    """Return the reason if an error says that a file could not be written, else None."""
    if isinstance(error, OSError):
        if error.errno not in WRITE_ERRORS:
            return None
        return error.strerror or one_line(error)

    # torch raises a plain RuntimeError, safetensors an error of its own
    library = type(error).__module__.partition(".")[0]
    may_be_writing = type(error) is RuntimeError or library.startswith("safetensors")
    if may_be_writing and re.search(NOT_WRITTEN, str(error)):
        return "the file could not be written to its end"
    return None


def free_space(folder: str | Path) -> str:
    """Describe the free space on the disk of a folder. Return "" where no disk is found."""
    # The folder may not exist yet. The nearest one that does is on the same disk
    parents = (Path(folder), *Path(folder).absolute().parents)
    existing = next((path for path in parents if path.exists()), None)
    if existing is None:
        return ""

    usage = shutil.disk_usage(existing)
    return f" ({usage.free // 1024:,} of {usage.total // 1024:,} kB of its disk are free)"


__all__ = ["explanation", "is_out_of_memory", "one_line", "writing"]
