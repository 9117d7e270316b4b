"""What of a folder goes to the Hub: the files of a model, and nothing that was left beside them or is linked there."""

import json
import os
import re
from pathlib import Path

import pytest
from hub_server import TOKEN
from published import tiny_denoiser

from edlm_hf.pushing import check_references
from edlm_hf.repository_files import check_no_secrets, find_file, is_published, repository_files
from edlm_hf.tokenization import text8_tokenizer

LONG = "hf_" + "aB3dE6" * 6
NOBODYS = "for nobody else"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n"


@pytest.fixture
def folder(tmp_path):
    """A model with its tokenizer, and beside it a file that is for nobody else."""
    tiny_denoiser(vocab_size=29).save_pretrained(tmp_path / "model")
    text8_tokenizer(12).save_pretrained(tmp_path / "model")
    (tmp_path / "id_rsa").write_text(NOBODYS)
    return tmp_path / "model"


def push(source, repo_id, message="A model"):
    """`edlm push`: exit code and what was told."""
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    result = CliRunner().invoke(app, ["push", source, repo_id, "--commit-message", message])
    return result.exit_code, result.stderr


def pushed(hub, client, folder: Path, name: str) -> tuple[set[str], str]:
    """The names of the files that were published, and what was told on the way."""
    code, told = client(push, source=str(folder), repo_id=f"me/{name}")
    assert code == 0, told
    return set(hub[f"me/{name}"].files()) - {".gitattributes"}, told


MODEL = """
config.json generation_config.json model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json
model.fp16.safetensors pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json
adapter_config.json adapter_model.safetensors adapter_model.bin tyger/adapter_config.json
tyger/adapter_model.safetensors
tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt
tokenizer.model spiece.model cl100k.tiktoken chat_template.jinja additional_chat_templates/tool.jinja
preprocessor_config.json README.md LICENSE LICENSE.txt NOTICE requirements.txt notes.txt results.json all_results.json
modeling_edlm.py configuration_edlm.py custom_generate/generate.py custom_generate/requirements.txt
training.png assets/steps.gif images/a.svg
""".split()
LEFTOVERS = """
optimizer.bin optimizer.pt scheduler.pt scaler.pt rng_state.pth rng_state_0.pth training_args.bin
trainer_state.json recipe.json present_weights.safetensors optimizer.safetensors last.ckpt model.ckpt
epoch=3.ckpt checkpoint-10/model.safetensors checkpoint-10/adapter_config.json
last-checkpoint/adapter_model.safetensors wandb/run.log wandb/run-1/files/config.json wandb/media.png
runs/Nov26/events.out.tfevents.1 logs/train.txt mlruns/0/meta.yaml lightning_logs/a.json __pycache__/a.pyc
.env .env.local .netrc .git/config .cache/huggingface/token .ssh/id_ed25519 .secret.json id_rsa id_ed25519
key.pem server.key token hf_token.txt token.json credentials.json client_secret.json api_key.txt
passwords.txt.bak my.password.md data.parquet corpus.csv.gz dump.sql train.log nohup.out model.pkl archive.zip
notebook.ipynb hyper.yaml a.npy global_step3/mp_rank_00_model_states.pt venv/lib/site.py tests/test_x.py
""".split()


def test_a_repository_consists_of_what_models_are_made_of():
    assert [name for name in MODEL if not is_published(name)] == []
    assert [name for name in LEFTOVERS if is_published(name)] == []


def test_the_rest_of_a_folder_stays_there_and_is_named(hub, client, folder):
    before = {path.name for path in folder.iterdir()}
    chosen = ["notes.txt", "results.json", "assets/steps.gif", "custom_generate/generate.py"]
    for name in [*chosen, *LEFTOVERS]:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("x")

    published, told = pushed(hub, client, folder, "rest")
    assert published == before | set(chosen)
    assert "Not uploaded, since it is no part of a model repository: .cache/, .env, .env.local" in told
    assert re.search(r" and \d+ more\.", told)

    _, left = repository_files(folder)
    roots = {name.split("/")[0] for name in LEFTOVERS}
    assert {name.split("/")[0] for name in left} == roots
    assert "wandb/" in left
    assert "optimizer.bin" in left


def test_links_lead_nowhere_outside(hub, client, folder):
    before = {path.name for path in folder.iterdir()}
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (folder / ".env").write_text("SECRET")

    for name, target in {
        "notes.txt": folder.parent / "id_rsa",
        "relative.txt": "../id_rsa",
        "twice.txt": folder / "notes.txt",
        "hidden.txt": folder / ".env",
        "nothing.txt": "nowhere",
        "itself.txt": "itself.txt",
        "custom_generate": outside,
        "assets": "/etc",
        "inside.txt": folder / "config.json",
    }.items():
        os.symlink(target, folder / name)

    published, told = pushed(hub, client, folder, "links")
    assert published == before | {"inside.txt"}
    assert all(name in told for name in ("notes.txt", "hidden.txt", "custom_generate", ".env"))
    assert NOBODYS.encode() not in b"".join(hub["me/links"].files().values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", None),
        ("adapter_config.json", None),
        ("config.json", "holds none of config.json"),
        ("model.safetensors", "is a link that leads out of"),
    ],
)
def test_parts_of_a_model_that_are_links_are_not_read(hub, client, folder, name, message):
    target = folder.parent / "elsewhere"
    target.write_text(json.dumps({"energy_name_or_path": "/nowhere", "x": NOBODYS}))
    (folder / name).unlink(missing_ok=True)
    os.symlink(target, folder / name)
    assert find_file(folder, name) is None
    check_references(folder)

    code, told = client(push, source=str(folder), repo_id=f"me/linked-{name}")
    if message is not None:
        assert code == 1 and message in told and f"me/linked-{name}" not in hub.repositories
    else:
        files = hub[f"me/linked-{name}"].files()
        assert code == 0 and NOBODYS.encode() not in b"".join(files.values())
        assert (name in files) == (name == "README.md")  # ours, in its place


def test_a_snapshot_of_the_cache_is_pushed_whole(hub, client, folder):
    cache = folder.parent / "hub" / "models--me--source"
    snapshot, blobs = cache / "snapshots" / ("0" * 40), cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    names = {path.name for path in folder.iterdir()}
    for i, name in enumerate(sorted(names)):
        (folder / name).rename(blobs / f"{i}")
        os.symlink(f"../../blobs/{i}", snapshot / name)

    os.symlink(folder.parent / "id_rsa", snapshot / "notes.txt")
    os.symlink(folder.parent / "id_rsa", blobs / "linked")
    os.symlink("../../blobs/linked", snapshot / "more.txt")
    published, told = pushed(hub, client, snapshot, "snapshot")
    assert published == names and "more.txt, notes.txt" in told

    elsewhere = folder.parent / "model-copy"
    elsewhere.mkdir()
    os.symlink(blobs / "0", elsewhere / "notes.txt")
    assert repository_files(elsewhere) == ({}, ["notes.txt"])


def test_a_folder_may_be_a_link_itself(hub, client, folder):
    os.symlink(folder, folder.parent / "latest")
    published, _ = pushed(hub, client, folder.parent / "latest", "latest")
    assert published == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("secret", [LONG, TOKEN, KEY], ids=["by its shape", "in use", "a key"])
def test_a_text_with_a_secret_is_not_published(hub, client, folder, secret):
    config = json.loads((folder / "config.json").read_text())
    for name, text in {
        "README.md": f"# Mine\n{secret}",
        "notes.txt": secret,
        "results.json": json.dumps({"command": secret}),
        "custom_generate/generate.py": f"# {secret}",
        "config.json": json.dumps(config | {"note": secret}),
    }.items():
        file = folder / name
        before = file.read_text() if file.exists() else None
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        code, told = client(push, source=str(folder), repo_id="me/secret")
        assert code == 1
        assert f"{name} holds a token or a private key" in told
        assert secret[:12] not in told
        file.unlink() if before is None else file.write_text(before)

    assert "me/secret" not in hub.repositories


def test_the_message_of_a_push_shows_no_secret(hub, client, folder):
    assert client(push, source=str(folder), repo_id="me/message", message=f"pushed with {LONG}")[0] == 0
    assert hub["me/message"].messages[-1] == "pushed with ***"


def test_examples_are_no_secrets():
    check_no_secrets(
        {
            "README.md": b"hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx hf_... HF_TOKEN=hf_token",
            "a.safetensors": LONG.encode(),
        }
    )
    with pytest.raises(ValueError, match="holds a token"):
        check_no_secrets({"a.txt": b"my token"}, token="my token")
