"""Which failures a user can mend, and the one line in which a command says them; all others are mistakes of ours."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 600  # characters of a line; some libraries list all model types that they know
# What torch and safetensors say when a file cannot be written to its end
NOT_WRITTEN = "inline_container|iostream|PytorchStreamWriter|No space left|Disk quota|os error"
NO_MEMORY = "out of memory|not enough memory|can't allocate memory|Unable to allocate"


def explanation(error: BaseException) -> str | None:
    """What a command says of a failure, in one line; None for a mistake of this package, which has a traceback."""
    from huggingface_hub.errors import HTTPError

    if is_out_of_memory(error):
        return f"There is not enough memory: {one_line(error)} Use a smaller batch, a shorter text or a smaller model."
    # A package that an option needs and that is not installed
    lacks_package = isinstance(error, ImportError) or (isinstance(error, RuntimeError) and "pip install" in str(error))
    if isinstance(error, (ValueError, OSError, HTTPError)) or lacks_package:
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """The text of an error in one line of at most 600 characters; its name where it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its accelerator was not enough."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error)) is not None


@contextmanager
def writing(folder: str | Path, advice: str = "Make room there, or give another folder.") -> Iterator[None]:
    """Name the folder that cannot be written, in place of what the libraries say of a full disk, each its own.

    Raises:
        OSError: something inside could not write; which folder, why, and `advice`.
    """
    try:
        yield
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise OSError(f"{folder} cannot be written: {reason}{room(folder)}. {advice}") from error


def why_not_written(error: Exception) -> str | None:
    """The reason if an error is that of a file that could not be written, else None."""
    if isinstance(error, OSError):
        written = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
        return (error.strerror or one_line(error)) if written else None
    library = type(error).__module__.partition(".")[0]
    if (type(error) is RuntimeError or library.startswith("safetensors")) and re.search(NOT_WRITTEN, str(error)):
        return "the file could not be written to its end"
    return None


def room(folder: str | Path) -> str:
    """How much of the disk of a folder is free."""
    existing = next((path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists()), None)
    if existing is None:
        return ""
    usage = shutil.disk_usage(existing)
    return f" ({usage.free // 1024:,} of {usage.total // 1024:,} kB of its disk are free)"


__all__ = ["explanation", "is_out_of_memory", "one_line", "writing"]
