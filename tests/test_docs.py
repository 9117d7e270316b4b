"""The documentation: its code runs, its commands exist, its links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import yaml
from bare import BarePython
from hub_client import HubClient
from hub_server import HubServer

import edlm_hf

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "docs" / "quickstart.md"
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {QUICKSTART})]
PROSE = [*PAGES, QUICKSTART, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "recipes" / "README.md"]
FILES = [path for path in ROOT.glob("[!.]*/**/*") if path.is_file()] + list(ROOT.glob("*.*"))


@pytest.mark.timeout(300)
def test_every_block_of_every_page_runs_as_written(tmp_path):
    """In a process of its own: no network, and in place of the Hub a folder of tiny models."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    here = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    here |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
    here |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, pages.__file__, tmp_path / "scratch", tmp_path / "report.json", *PAGES]
    done = subprocess.run(list(map(str, command)), env=kept | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert {block["page"] for block in report if block["language"] == "python"} >= {"README.md", "using.md"}
    assert not (wrong := [block["error"] for block in report if block["error"]]), "\n\n".join(wrong)


def run_and_push(folder, script, command):
    import os

    from typer.testing import CliRunner

    from edlm_hf.cli import app

    os.chdir(folder)
    exec(script, {})
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output


def test_a_new_user_comes_from_nothing_to_a_model_that_loads_elsewhere(tmp_path):
    """The page as written: install left out, the Hub a local server, the last block without this package."""
    *here, push, elsewhere = [block for block in pages.blocks(QUICKSTART) if block.language != "console"]
    assert [block.language for block in (*here, push, elsewhere)] == ["python", "python", "python", "bash", "python"]
    script, ((edlm, *command),) = "\n".join(block.text for block in here), pages.commands(push)
    assert edlm == "edlm"
    hub, bare, cwd = HubServer(), BarePython(tmp_path), tmp_path / "cwd"
    cwd.mkdir()
    machine = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    client = HubClient(hub.environment(tmp_path / "hf") | machine)
    try:
        client(run_and_push, folder=cwd, script=script, command=command)
        assert hub["user/edlm-mine"].private
        assert bare(elsewhere.text, **hub.environment(tmp_path / "elsewhere")).startswith("it was a bright ")
    finally:
        client.close()
        hub.close()


WRONG = """
```python
x = 1
```

```python
y = x + 1
z = y / 0
```

```bash
edlm evaluate --model m --data d --num-steps many
edlm evaluate --model m
```

```console
$ edlm generate --model m --colour red
some output
```

```bash
edlm train-denoiser recipes/text8/denoiser.yaml --learning_speed 3
```

```bash
accelerate launch --config_file recipes/accelerate/none.yaml $(which edlm) train-energy recipes/text8/energy.yaml
```

```bash
python -m edlm_hf.lm_eval run --model_args pretrained=m,bound=nelbo,candidates=4 --tasks lambada_openai
```

```bash run
edlm convert nothing.ckpt out
```

```python not-run
z = 1 +
```
"""
FOUND = [
    None,
    'wrong.md", line 8, in <module>\n    z = y / 0',
    "block of line 12: Invalid value for '--num-steps'",
    "colour",
    "learning_speed",
    "there is no recipes/accelerate/none.yaml",
    "--model_args has candidates, which the bridge does not know",
    "nothing.ckpt",
    "SyntaxError",
]


def test_blocks_that_are_wrong_are_found_with_their_line(tmp_path):
    (tmp_path / "wrong.md").write_text(WRONG)
    report = pages.run_page(tmp_path / "wrong.md", tmp_path / "scratch")
    assert len(report) == len(FOUND)
    for block, expected in zip(report, FOUND, strict=True):
        assert (block["error"] is None) if expected is None else (expected in block["error"]), block


def test_commands_that_exist_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in (
        "edlm evaluate --model m --data text8 --metrics nelbo,h_profile --json | tee result.json",
        "torchrun --nproc_per_node 8 $(which edlm) train-energy recipes/text8/energy.yaml --max_steps 9",
        "OMP_NUM_THREADS=1 edlm benchmark speed --quick --output out  # a comment",
        "pip install edlm-hf",
    ):
        block = pages.Block(tmp_path, 1, "bash", (), command)
        for words in pages.commands(block):
            pages.check(words)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)  # blocks are run instead
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    names = {path.name for path in FILES}
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    functions = set(re.findall(r"^def (\w+)", code, re.MULTILINE))
    for name in re.findall(r"`([\w./-]+)`", text):
        if re.fullmatch(r"(edlm_hf|modeling|tests|recipes|docs|results)/[\w./-]+", name):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        elif re.fullmatch(r"\w+\.(py|md|yaml)", name):
            assert name in names, f"{page.name} names {name}"
        elif name.startswith("test_"):
            assert name in functions, f"{page.name} names the test {name}"


def test_citation_and_changelog_speak_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == edlm_hf.__version__ and citation["cff-version"]
    assert "2410.21357" in json.dumps(citation["preferred-citation"])
    assert f"## {edlm_hf.__version__}" in (ROOT / "CHANGELOG.md").read_text()
