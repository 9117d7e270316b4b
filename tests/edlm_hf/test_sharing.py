"""Pushing models to a Hub and loading from it: a local server, and interrupted pushes."""

import json
from pathlib import Path

import pytest
from hub_client import fingerprint
from huggingface_hub import ModelCard
from published import randomised
from pushed_models import AUTO, build, command, contents, load, push_model

from edlm_hf import MDLMForCausalLM, checkpoint
from edlm_hf.card_signatures import is_untouched
from edlm_hf.hub import save_custom_generate


@pytest.mark.parametrize("kind", AUTO)
def test_pushed_model_loads_and_its_card_is_ours(hub, client, tmp_path, kind):
    model = build(kind)
    model.save_pretrained(tmp_path)
    client(push_model, source=str(tmp_path), auto_class=AUTO[kind], repo_id=f"me/{kind}", tags=["tiny"])
    assert client(load, repo_id=f"me/{kind}", auto_class=AUTO[kind]) == fingerprint(model)

    card = ModelCard(hub[f"me/{kind}"].text("README.md"))
    assert card.data.library_name == "transformers"
    assert {"masked-diffusion", "tiny"} <= set(card.data.tags)
    tasks = {
        "nce": "text-generation",
        "denoiser": "fill-mask",
        "drafter": "fill-mask",
        "causal": "text-generation",
    }
    assert card.data.pipeline_tag == tasks.get(kind, "feature-extraction" if kind == "trunk" else None)
    assert card.data.base_model is None and str(tmp_path) not in str(card)
    assert f'from_pretrained("me/{kind}"' in card.text and "REPOSITORY" not in card.text
    assert is_untouched(hub[f"me/{kind}"].text("README.md"))
    # The empty repository, and everything in one commit
    assert len(hub[f"me/{kind}"].messages) == 2


def push_tokenizer(source, repo_id):
    import transformers

    transformers.AutoTokenizer.from_pretrained(source).push_to_hub(repo_id)


def test_pushed_tokenizer_leaves_the_card_as_it_is(hub, client, folder):
    client(push_model, source=str(folder), auto_class=AUTO["nce"], repo_id="me/parts")
    before = hub["me/parts"].text("README.md")
    client(push_tokenizer, source=str(folder), repo_id="me/parts")
    assert hub["me/parts"].text("README.md") == before and is_untouched(before)


def test_revision_pins_a_push(hub, client, tmp_path):
    first, second = build("denoiser"), randomised(build("denoiser"), seed=5)
    for name, model in (("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
    push = {"auto_class": AUTO["denoiser"], "repo_id": "me/pinned"}
    commit = client(push_model, source=str(tmp_path / "first"), **push)
    code, out, err = client(
        command,
        arguments=[
            "push",
            str(tmp_path / "second"),
            "me/pinned",
            "--revision",
            "v2",
            "--commit-message",
            "Second",
            "--json",
        ],
    )
    assert code == 0, err

    result = json.loads(out.splitlines()[-1])
    assert result["repository"] == "me/pinned" and result["revision"] == "v2"
    assert result["commit"] == hub["me/pinned"].branches["v2"]
    assert hub["me/pinned"].messages[-1] == "Second"
    assert client(load, repo_id="me/pinned") == fingerprint(first)
    assert client(load, repo_id="me/pinned", revision="v2") == fingerprint(second)

    client(push_model, source=str(tmp_path / "second"), **push)
    assert client(load, repo_id="me/pinned") == fingerprint(second)
    assert client(load, repo_id="me/pinned", revision=commit) == fingerprint(first)


def test_a_checkpoint_that_ships_is_pushed_by_its_name_and_left_as_it_is(hub, client):
    shipped = checkpoint("edlm-books-ar")
    before = contents(Path(shipped))
    code, _, err = client(command, arguments=["push", "edlm-books-ar", "me/books-ar"])
    assert code == 0, err
    assert contents(Path(shipped)) == before
    pushed = client(load, repo_id="me/books-ar", auto_class=AUTO["causal"])
    assert pushed == fingerprint(MDLMForCausalLM.from_pretrained(shipped))


def test_interrupted_push_changes_nothing_and_can_be_repeated(hub, client, folder):
    before = contents(folder)
    hub.interruptions = 1
    code, _, err = client(command, arguments=["push", str(folder), "me/cut"])
    assert code == 1
    assert err.splitlines()[-1].startswith("edlm push: ")
    assert "repeat the command" in err
    assert contents(folder) == before
    assert set(hub["me/cut"].files()) == {".gitattributes"}

    code, out, _ = client(command, arguments=["push", str(folder), "me/cut"])
    assert code == 0 and hub["me/cut"].branches["main"] in out
    assert contents(folder) == before

    stored = {name: content for name, content in hub["me/cut"].files().items() if name != ".gitattributes"}
    assert set(stored) == set(before)
    # The card knows its repository now
    assert {name for name in before if stored[name] != before[name]} == {"README.md"}
    assert client(load, repo_id="me/cut") == fingerprint(build("nce"))

    commits = len(hub["me/cut"].commits)
    assert client(command, arguments=["push", str(folder), "me/cut"])[0] == 0
    assert len(hub["me/cut"].commits) == commits  # nothing new, no commit


def push_twice(source, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_pretrained(source)
    try:
        model.push_to_hub(repo_id)
    except Exception as error:
        model.push_to_hub(repo_id)
        return type(error).__name__


def test_interrupted_push_of_a_model_can_be_repeated(hub, client, folder):
    hub.interruptions = 1
    assert client(push_twice, source=str(folder), repo_id="me/cut-model") is not None
    assert client(load, repo_id="me/cut-model") == fingerprint(build("nce"))


def test_stale_shards_go_and_training_state_stays_here(hub, client, folder, tmp_path):
    build("nce").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert client(command, arguments=["push", str(tmp_path / "sharded"), "me/shards"])[0] == 0
    assert any(name.startswith("model-00001") for name in hub["me/shards"].files())

    (folder / "checkpoint-10").mkdir()
    for name in ("checkpoint-10/model.safetensors", "optimizer.pt", "training_args.bin", ".secret", "notes.txt"):
        (folder / name).write_text("x")
    assert client(command, arguments=["push", str(folder), "me/shards"])[0] == 0

    stored = set(hub["me/shards"].files())
    assert {name for name in stored if "safetensors" in name} == {"model.safetensors"}
    assert "notes.txt" in stored
    assert not stored & {"optimizer.pt", "training_args.bin", ".secret"}
    assert client(load, repo_id="me/shards") == fingerprint(build("nce"))


def save_and_push_twice(source, target, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_pretrained(source)
    try:
        model.save_pretrained(target, push_to_hub=True, repo_id=repo_id)
    except Exception as error:
        saved = edlm_hf.EDLMForMaskedDiffusion.from_pretrained(target)
        saved.save_pretrained(target, push_to_hub=True, repo_id=repo_id)
        return type(error).__name__


def test_a_failed_push_of_a_save_leaves_the_folder_complete(hub, client, folder, tmp_path):
    hub.interruptions = 1
    target = tmp_path / "target"
    assert client(save_and_push_twice, source=str(folder), target=str(target), repo_id="me/cut-save") is not None
    assert is_untouched((target / "README.md").read_text())
    assert client(load, repo_id="me/cut-save") == fingerprint(build("nce"))


def test_the_engine_is_pushed_under_its_name(hub, client, tmp_path):
    folder = save_custom_generate(tmp_path / "engine")
    assert client(command, arguments=["push", str(folder), "me/engine"])[0] == 0
    files = hub["me/engine"].files()
    assert {"README.md", "custom_generate/generate.py", "custom_generate/modeling_edlm.py"} <= set(files)
    assert 'custom_generate="me/engine"' in hub["me/engine"].text("README.md")


def test_private_push_to_a_public_repository_is_refused(hub, client, folder):
    assert client(command, arguments=["push", str(folder), "me/public"])[0] == 0
    before = dict(hub["me/public"].branches)
    (folder / "notes.txt").write_text("secret")
    code, _, err = client(command, arguments=["push", str(folder), "me/public", "--private"])
    assert code == 1 and "edlm push: me/public exists and is public" in err
    assert hub["me/public"].branches == before


def test_mistakes_are_told_and_nothing_is_made(hub, client, folder, tmp_path):
    before = set(hub.repositories)
    for arguments, words in [
        ([str(tmp_path / "nowhere"), "me/x"], "no folder with a model"),
        ([str(folder), "a/b/c"], "edlm push: "),
    ]:
        code, out, err = client(command, arguments=["push", *arguments])
        assert code == 1 and err.startswith("edlm push: ") and words in err and not out

    assert client(command, arguments=["push", str(folder)])[0] == 2
    code, out, _ = client(command, arguments=["push", "--help"])
    assert code == 0
    assert all(option in out for option in ("--private", "--revision", "--commit-message", "--json"))
    assert set(hub.repositories) == before
