"""Documentation is run as it is written: the fenced blocks of a page, in their order and in one folder.

    python pages.py SCRATCH REPORT PAGE...    # in an environment of its own; the report is a JSON list of blocks

- ```python: runs; the blocks of a page share one namespace.
- ```bash and ```console (there, lines that begin with "$ "): every command with `edlm` in it, launchers included, and
  every `python -m edlm_hf.lm_eval` must be one that exists, with its flags, recipes and settings. `run` behind it: the
  block holds nothing but `edlm` commands, and they run. The files that `pytest` is called with exist.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from page_commands import ROOT, WrongCommand, check


@dataclass
class Block:
    """A fenced block: its language, the words behind that, its text, and the line of the page where the text begins."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = enumerate(page.read_text().splitlines(), start=1)
    for number, line in lines:
        if not (opened := re.fullmatch(r"(`{3,})\s*(.*)", line)):
            continue
        language, *words = opened[2].split() or [""]

        body = []
        for _, inside in lines:
            if inside.strip() == opened[1]:
                break
            body.append(inside)

        yield Block(page, number + 1, language, tuple(words), "\n".join(body))


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a block. Lines that end with a backslash go on, comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    split = (shlex.split(line.replace("$(which edlm)", "edlm"), comments=True) for line in lines)
    return [words for words in split if words]


def run_block(block: Block, namespace: dict) -> None:
    if block.language == "python":
        # Errors have lines of the page
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        exec(code, namespace)
    elif block.language in ("bash", "sh", "shell", "console"):
        for words in commands(block):
            check(words, run="run" in block.words)


def run_page(page: Path, folder: Path) -> list[dict]:
    """Run the blocks of a page in `folder`, where `recipes` is that of the repository; what came of every block.

    Commands that are only checked come last: those of training would reset what a trainer of the page stands on.
    """
    folder.mkdir(parents=True)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    in_order = sorted(
        blocks(page),
        key=lambda block: block.language != "python" and "run" not in block.words,
    )
    before, namespace, results = Path.cwd(), {"__name__": "__main__"}, []
    os.chdir(folder)

    try:
        for block in in_order:
            began, error = time.monotonic(), None
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    run_block(block, namespace)
            except WrongCommand as wrong:
                error = f"{page.name}, block of line {block.line}: {wrong}"
            except Exception:
                error = f"{page.name}, block of line {block.line}:\n{traceback.format_exc()}"

            seconds = round(time.monotonic() - began, 2)
            result = {
                "page": page.name,
                "line": block.line,
                "language": block.language,
                "words": block.words,
            }
            results.append(result | {"seconds": seconds, "error": error})
    finally:
        os.chdir(before)

    return sorted(results, key=lambda result: result["line"])


def main(scratch: str, report: str, *pages: str) -> None:
    from local_hub import write_hub

    write_hub(Path(os.environ["HF_HUB_CACHE"]))
    results = [result for page in pages for result in run_page(Path(page), Path(scratch, Path(page).stem))]
    Path(report).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
