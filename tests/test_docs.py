"""The documentation, model cards included: its code runs as it stands, and its commands exist."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import page_commands
import pages
import pytest
from bare import BarePython
from hub_client import HubClient
from hub_server import HubServer, Repository
from local_hub import write_bert
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from python_path import python_path

import edlm_hf.data
import edlm_hf.evaluation
import edlm_hf.metrics
import edlm_hf.training
from edlm_hf.cards import CardFacts
from edlm_hf.checkpoints import ASSETS, CHECKPOINTS
from edlm_hf.hub import save_custom_generate
from edlm_hf.tokenization import text8_tokenizer

ROOT = Path(__file__).parents[1]
FIRST_HOUR, QUICKSTART, SHARING = (ROOT / "docs" / f"{name}.md" for name in ("first_hour", "quickstart", "sharing"))
WITH_A_HUB = {FIRST_HOUR, QUICKSTART, SHARING}
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - WITH_A_HUB)]


def test_every_block_of_every_page_runs_as_written(tmp_path):
    """In a process of its own: no network, and in place of the Hub a folder of tiny models."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    here = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    here |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
    here |= {"PYTHONPATH": python_path()}
    command = [sys.executable, pages.__file__, tmp_path / "scratch", tmp_path / "report.json", *PAGES]
    done = subprocess.run(list(map(str, command)), env=kept | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]

    report = json.loads((tmp_path / "report.json").read_text())
    assert {block["page"] for block in report if block["language"] == "python"} >= {"README.md", "using.md"}
    assert not (wrong := [block["error"] for block in report if block["error"]]), "\n\n".join(wrong)


def test_readme_prints_what_it_shows():
    """The output below the command and the snippet, and the length of the page."""
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    # 1. The command
    readme = list(pages.blocks(ROOT / "README.md"))
    (console,) = [block for block in readme if block.language == "console"]
    ((edlm, *command),) = pages.commands(console)
    shown = console.text.split("\n", 1)[1]
    assert edlm == "edlm"
    assert CliRunner().invoke(app, command).stdout.strip() == shown.strip()

    # 2. The first snippet, whose output is the block after it
    number = [block.language for block in readme].index("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(readme[number].text, {})

    assert printed.getvalue().strip() == readme[number + 1].text.strip()

    assert len((ROOT / "README.md").read_text().split()) <= 700


def run_page(page, folder):
    from pathlib import Path

    import pages

    return [block["error"] for block in pages.run_page(Path(page), Path(folder)) if block["error"]]


@pytest.fixture
def hub():
    """A Hub of this machine."""
    hub = HubServer()
    yield hub
    hub.close()


@pytest.fixture
def client(hub, tmp_path):
    """A process that takes it for the Hub."""
    client = HubClient(
        hub.environment(tmp_path / "hf")
        | {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
    )
    yield client
    client.close()


def test_every_block_of_the_page_on_sharing_runs_as_written(hub, client, tmp_path):
    """The pushes too: the Hub is a local server."""
    assert not (wrong := client(run_page, page=SHARING, folder=tmp_path / "scratch")), "\n\n".join(wrong)
    assert set(hub.repositories) >= {"user/edlm", "user/edlm-tyger", "user/edlm-tyger-2", "user/edlm-merged"}
    assert hub["user/edlm-merged"].private and "v2" in hub["user/edlm-tyger"].branches


def test_the_tasks_of_the_first_hour_work_as_written(hub, client, tmp_path):
    """All but the installation and the site, which `tests/nightly/test_first_hour.py` has."""
    assert not (wrong := client(run_page, page=FIRST_HOUR, folder=tmp_path / "scratch")), "\n\n".join(wrong)
    assert hub["user/my-bert"].private


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
        assert bare(elsewhere.text, **hub.environment(tmp_path / "elsewhere")).startswith("It was a bright")
    finally:
        client.close()
        hub.close()


def write_models(folder: Path) -> None:
    """A folder for every kind of model that has a card. The checkpoints that ship weigh two candidates, to be quick."""
    tokenizer = text8_tokenizer(12)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    models = {"denoiser": tiny_denoiser(**sizes), "causal": tiny_causal(**sizes)}
    models["trunk"] = randomised(edlm_hf.MDLMModel(tiny_config(**sizes)))
    models["energy"] = randomised(edlm_hf.EDLMEnergyModel(tiny_config(**sizes)))
    models["nce"] = edlm_hf.EDLMForMaskedDiffusion.from_components(models["denoiser"], models["energy"])

    for name, model in models.items():
        model.card_facts = CardFacts(command="edlm train-energy recipes/text8/energy.yaml --max_steps 9")
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    for name in CHECKPOINTS:
        shutil.copytree(ASSETS / name, folder / name)
        options = json.loads((folder / name / "generation_config.json").read_text())
        options |= {"num_candidates": 2} if "num_candidates" in options else {}
        (folder / name / "generation_config.json").write_text(json.dumps(options))

    save_custom_generate(folder / "engine")


def push_all(folder):
    from pathlib import Path

    from typer.testing import CliRunner

    from edlm_hf.cli import app

    for model in Path(folder).iterdir():
        result = CliRunner().invoke(app, ["push", str(model), f"me/{model.name}"])
        assert result.exit_code == 0, result.output


def run_blocks(blocks):
    import traceback

    wrong = []
    for name, code in blocks:
        try:
            exec(code, {})
        except Exception:
            wrong.append(f"{name}: {traceback.format_exc()}")

    return wrong


WITHOUT_PACKAGE = """
import importlib.util, json, sys
assert importlib.util.find_spec("edlm_hf") is None
for name, code in json.loads(sys.argv[1]):
    print(name)
    exec(code, {})
"""


def test_every_block_of_every_card_runs_as_written(tmp_path, monkeypatch):
    """Pushed to a Hub of this machine: with this package where the block imports it, without it elsewhere."""
    hub, bert = HubServer(), tmp_path / "bert"
    write_bert(bert)
    repository = hub.repositories["google-bert/bert-base-uncased"] = Repository(private=False)
    repository.commit("main", {path.name: path.read_bytes() for path in bert.iterdir()}, "BERT")
    write_models(tmp_path / "models")
    client = HubClient(hub.environment(tmp_path / "client"))
    client(push_all, folder=str(tmp_path / "models"))
    monkeypatch.chdir(ROOT)

    with_package, without = [], []
    for folder in (tmp_path / "models").iterdir():
        (folder / "card.md").write_text(hub[f"me/{folder.name}"].text("README.md"))
        for block in pages.blocks(folder / "card.md"):
            if block.language == "python":
                (with_package if "edlm_hf" in block.text else without).append((folder.name, block.text))
            else:
                pages.run_block(block, {})

    assert len(with_package) == len(CHECKPOINTS) + 5 and len(without) == len(CHECKPOINTS) + 5
    assert not (wrong := client(run_blocks, blocks=with_package)), "\n\n".join(wrong)
    client.close()

    bare = BarePython(tmp_path)
    bare(WITHOUT_PACKAGE, json.dumps(without), **hub.environment(tmp_path / "online"))
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
edlm evaluate --model m --dataset d --num-steps many
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

```bash
pytest tests/test_docs.py tests/test_none.py -k "a or b"
```

```python
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
    "there is no tests/test_none.py",
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
        "edlm evaluate --model m --dataset text8 --metrics nelbo,h_profile --json | tee result.json",
        "torchrun --nproc_per_node 8 $(which edlm) train-energy recipes/text8/energy.yaml --max_steps 9",
        "OMP_NUM_THREADS=1 edlm benchmark speed --quick --output out  # a comment",
        "pip install edlm-hf",
    ):
        block = pages.Block(tmp_path, 1, "bash", (), command)
        for words in pages.commands(block):
            page_commands.check(words)
