"""Makes pages of the site out of the files of the repository (a hook of MkDocs, see mkdocs.yml).

README.md is the first page. Files outside docs/ to which a page links become a part of the site: Markdown and notebooks
as pages, everything else as it is. Links are written as GitHub reads them, relative to the file, and lead to the same
file here.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "build" / "reference"  # mkdocs.yml names it, too

FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<before>\]\(|\bsrc=\"|\bhref=\")(?P<path>[\w./%-]+)(?P<anchor>#[^)\"\s]*)?(?=[)\"])")


def on_startup(command: str, dirty: bool) -> None:
    """Copy the package as it is installed, with modeling/ inside: the reference is read from there."""
    shutil.rmtree(REFERENCE, ignore_errors=True)
    code_only = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "edlm_hf", REFERENCE / "edlm_hf", ignore=code_only)
    shutil.copytree(ROOT / "modeling", REFERENCE / "edlm_hf" / "modeling", ignore=code_only)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, and what the pages link to, and what those link to."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    new = [ROOT / "README.md"]
    known = set(pages)
    for page in pages:
        new += linked_files(page)

    while new:
        path = new.pop()
        if path in known or path.is_relative_to(config.docs_dir):
            continue
        known.add(path)
        files.append(file_of(path, config))
        new += linked_files(path)
    return files


def file_of(path: Path, config: MkDocsConfig) -> File:
    """The file of the site for a file of the repository outside docs/."""
    name = site_name(path)
    if path.suffix == ".ipynb":
        return File.generated(config, name, content=notebook_markdown(json.loads(path.read_text())))
    return File.generated(config, name, abs_src_path=str(path))


def site_name(path: Path) -> str:
    """The place of a file of the repository on the site, for docs/using.md using.md."""
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    return re.sub(r"\.ipynb$", ".md", name.removeprefix("docs/"))


def repository_path(name: str) -> Path:
    """The inverse of `site_name`, for pages."""
    if name == "index.md":
        return ROOT / "README.md"
    candidates = (ROOT / "docs" / name, ROOT / name, (ROOT / name).with_suffix(".ipynb"))
    return next(path for path in candidates if path.exists())


def linked_files(page: Path) -> list[Path]:
    """Every file of the repository to which a page links."""
    if page.suffix not in (".md", ".ipynb"):
        return []

    text = page.read_text()
    if page.suffix == ".ipynb":
        text = notebook_markdown(json.loads(text))

    found = []

    def note(match: re.Match) -> str:
        found.append(target_of(page, match["path"]))
        return match[0]

    outside_of_code(text, lambda part: LINK.sub(note, part))
    return [path for path in found if path is not None]


def target_of(page: Path, link: str) -> Path | None:
    """The file to which a link of a page leads. For a folder its README.md. None if there is none."""
    path = Path(os.path.normpath(page.parent / link))
    if path.is_dir():
        path = path / "README.md"
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite what GitHub reads in another way than MkDocs."""
    source = repository_path(page.file.src_uri)

    def on_site(match: re.Match) -> str:
        target = target_of(source, match["path"])
        if target is None:
            return match[0]
        link = os.path.relpath(site_name(target), Path(page.file.src_uri).parent)
        return match["before"] + link + (match["anchor"] or "")

    def rewrite(part: str) -> str:
        part = part.replace(r"\<", "&lt;").replace(r"\>", "&gt;")
        return LINK.sub(on_site, part)

    # `bash run` is for tests/test_docs.py
    markdown = outside_of_code(markdown, rewrite)
    return re.sub(r"^(`{3,})bash run$", r"\1bash", markdown, flags=re.MULTILINE)


def outside_of_code(markdown: str, function: Callable[[str], str]) -> str:
    """Apply a function to the text between the fenced blocks."""
    parts = []
    end = 0
    for fence in FENCE.finditer(markdown):
        parts += [function(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, function(markdown[end:])])


def notebook_markdown(notebook: dict) -> str:
    """A notebook with its outputs as a page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [output_markdown(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def output_markdown(output: dict) -> str:
    """An output of a cell: a picture, else HTML, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="output" src="data:image/png;base64,{picture}">'
    if "image/svg+xml" in data:
        return "".join(data["image/svg+xml"])
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"
