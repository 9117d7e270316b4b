"""Fetch the part of transformers' own test-suite that tests outside models, for the installed version of transformers.

The wheel does not carry it, the sdist does. What is needed lands in `.cache/transformers-<version>` as the package
`transformers_tests` (under its own name, `tests`, it would collide with the folder that pytest imports our tests
from); modules that the sdist lacks are written as stubs. Without a package index nothing is written, the reason is
printed and the exit status is still 0: the tests that need the suite then skip.

The tests of generation are not in the sdist. Where TRANSFORMERS_REPOSITORY names a git repository of transformers on
this machine, they come from there: of the installed version, or of the newest one before it that is tagged there.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

VERSION = version("transformers")
CACHE = Path(__file__).resolve().parents[2] / ".cache"
FOLDER = CACHE / f"transformers-{VERSION}"

PACKAGE = "transformers_tests"
GENERATION = "generation/test_utils.py"
FILES = ("test_modeling_common.py", "test_configuration_common.py")
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n\n\nclass ExportGenerateTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    GENERATION: "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def download(folder: Path) -> Path:
    """The sdist of the installed transformers, in `folder`.

    Raises:
        RuntimeError: pip could not get it. The message is pip's last error line.
    """
    # Only transformers itself from source: its build requirements may come as wheels.
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--retries", "1"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={VERSION}"]

    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise RuntimeError("pip download took more than 300 seconds") from None

    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        errors = [line for line in result.stderr.splitlines() if line.strip()] or ["pip download left no sdist"]
        raise RuntimeError(next((line for line in reversed(errors) if line.startswith("ERROR")), errors[-1]))

    return archives[0]


def extract(archive: Path, package: Path) -> None:
    """Write the needed files of the sdist and the stubs into `package`.

    Raises:
        RuntimeError: the sdist has no such file.
    """
    with tarfile.open(archive) as tar:
        for name in FILES:
            try:
                source = tar.extractfile(f"transformers-{VERSION}/tests/{name}")
            except KeyError:
                raise RuntimeError(f"{archive.name} has no tests/{name}") from None
            (package / name).write_bytes(source.read())

    for name, text in STUBS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)


def take_generation_tests(repository: str, package: Path) -> str:
    """Write the tests of generation of a git repository into `package`, and return the tag that they have there.

    Raises:
        RuntimeError: git cannot read it, or there is no release of the installed version or one before it.
    """
    releases = [tag for tag in git(repository, "tag").split() if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    earlier = [tag for tag in releases if Version(tag) <= Version(VERSION)]
    if not earlier:
        raise RuntimeError(f"{repository} has no release {VERSION} or one before it")

    tag = max(earlier, key=Version)
    source = git(repository, "show", f"{tag}:tests/{GENERATION}")
    (package / GENERATION).write_text(source.replace("from tests.", f"from {PACKAGE}."))
    return tag


def git(repository: str, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip() or f"git {arguments[0]} failed")
    return result.stdout


def main() -> None:
    fetch_common_tests()
    repository = os.environ.get("TRANSFORMERS_REPOSITORY")
    if repository and FOLDER.exists():
        try:
            tag = take_generation_tests(repository, FOLDER / PACKAGE)
        except RuntimeError as error:
            print(f"transformers {VERSION} generation tests: cannot be had, they will be skipped: {error}")
        else:
            print(f"transformers {VERSION} generation tests: those of {tag}")


def fetch_common_tests() -> None:
    if FOLDER.exists():
        print(f"transformers {VERSION} test-suite: present in {os.path.relpath(FOLDER)}")
        return

    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as scratch:
        try:
            complete = Path(scratch, "complete")
            (complete / PACKAGE).mkdir(parents=True)
            extract(download(Path(scratch)), complete / PACKAGE)
        except RuntimeError as error:
            print(f"transformers {VERSION} test-suite: cannot be had, its tests will be skipped: {error}")
            return
        shutil.move(complete, FOLDER)

    print(f"transformers {VERSION} test-suite: fetched into {os.path.relpath(FOLDER)}")


if __name__ == "__main__":
    main()
