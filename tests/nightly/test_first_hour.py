"""The ten tasks of docs/first_hour.md, as a newcomer does them: a copy of the repository, a new environment, the newest
versions, and a Hub of this machine. Nothing but the page says what is typed.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pages
import pytest
from hub_server import HubServer

import edlm_hf

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first_hour.md"
TASKS = [line for line in PAGE.read_text().splitlines() if line.startswith("## ")]


class Newcomer:
    """A copy of the repository, an environment beside it, a folder for the work, and a Hub."""

    def __init__(self, folder: Path):
        self.hub = HubServer()
        self.clone = folder / "clone"
        self.work = folder / "work"
        self.work.mkdir()
        self.results: dict[str, str] = {}  # what was printed, by task

        listed = subprocess.run(
            ["git", "ls-files", "-z"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        for name in listed.stdout.split("\0"):
            if name and (ROOT / name).is_file():
                target = self.clone / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)

        subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
        self.bin = folder / "environment" / "bin"
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        self.environment |= self.hub.environment(folder / "hf")
        self.environment |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
        self.environment |= {
            "PIP_CONSTRAINT": str(ROOT / "constraints" / "newest.txt"),
            "NO_MKDOCS_2_WARNING": "1",
        }
        self.environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "2"}

    def run(self, *command, where: Path | None = None) -> str:
        """Run a command and return what it printed."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        result = subprocess.run(command, env=self.environment, cwd=where or self.work, **options)
        assert result.returncode == 0, f"{command} failed:\n{result.stdout[-6000:]}"
        return result.stdout

    def run_block(self, block: pages.Block) -> str:
        """Run a block as it is written: what is typed in the clone is a `console`."""
        if block.language == "python":
            return self.run("python", "-c", block.text)
        if block.language == "bash":
            return self.run("bash", "-e", "-c", block.text)
        lines = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
        return "".join(self.run("bash", "-e", "-c", line, where=self.clone) for line in lines)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Somebody who has done all ten tasks."""
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    lines = PAGE.read_text().splitlines()
    try:
        for block in pages.blocks(PAGE):
            task = next(line for line in reversed(lines[: block.line]) if line.startswith("## "))
            newcomer.results[task] = newcomer.results.get(task, "") + newcomer.run_block(block)
        yield newcomer
    finally:
        newcomer.hub.close()


def test_all_ten_tasks_work_as_they_are_written(newcomer):
    assert list(newcomer.results) == TASKS and len(TASKS) == 10
    printed = list(newcomer.results.values())
    _, imported, demo, generated, filled, own, trained, evaluated, shared, _ = printed
    assert imported.split() == [edlm_hf.__version__] * 2
    assert "right sentences of 400" in demo
    assert "The old house" in generated
    assert "The old" in filled and "the river." in filled and "[MASK]" not in filled
    assert "reads" in own and "[MASK]" not in own
    assert "nce_loss" in trained and "edlm generate --model lora" in trained
    assert (newcomer.work / "lora" / "model.safetensors").is_file()
    assert "nelbo" in evaluated
    assert newcomer.hub["user/my-bert"].private and "BertForMaskedLM" in shared
    assert (newcomer.clone / "build" / "site" / "first_hour.html").is_file()


def test_the_environment_has_no_requirement_that_is_broken(newcomer):
    assert "No broken requirements found" in newcomer.run("pip", "check")


def test_wheel_and_source_archive_are_built_without_warnings_and_are_fit_for_the_index(
    newcomer,
    tmp_path,
):
    newcomer.run("pip", "install", "build", "twine")
    built = newcomer.run("python", "-m", "build", "--outdir", tmp_path, where=newcomer.clone)
    assert "warn" not in built.lower()
    source, wheel = sorted(tmp_path.iterdir(), key=lambda file: file.suffix)
    assert (source.suffix, wheel.suffix) == (".gz", ".whl") and wheel.stat().st_size < 50e6
    assert "WARNING" not in newcomer.run("twine", "check", "--strict", source, wheel)
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(("tests", "build"))]
