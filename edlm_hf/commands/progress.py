"""The bar of a command that takes a while."""

from edlm_hf.terminal import visible


def running(shown: bool = True):
    """Make a progress bar on stderr, which shows itself only on a terminal.

    Returns:
        the bar, a context manager, and a function `advance(done, in_all, label)` that moves it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )

    # On stderr, so that the result on stdout can be piped
    console = Console(stderr=True)
    is_hidden = not (shown and console.is_terminal)
    progress = Progress(*columns, console=console, disable=is_hidden)
    task = progress.add_task("")

    # A label may hold the name of a file, with whatever characters are in it
    def advance(done: int, in_all: int, label: str) -> None:
        progress.update(task, completed=done, total=in_all, description=visible(label))

    return progress, advance


__all__ = ["running"]
