"""Checkpoints that carry their code: loaded, saved and pushed where this package is not installed or not used."""

import re
import shutil

import pytest
from hub_client import fingerprint
from huggingface_hub import ModelCard
from pushed_models import AUTO, FACTS, build, command, contents, load, push_model

from edlm_hf.card_signatures import is_untouched


def test_examples_of_the_card_run_without_the_package_and_from_a_private_repository(
    hub, client, without_package, folder
):
    code, out, err = client(
        command,
        arguments=["push", str(folder), "me/private", "--private", "--json"],
    )
    assert code == 0, err
    assert hub["me/private"].private

    example = re.findall(r"```python\n(.*?)```", hub["me/private"].text("README.md"), re.DOTALL)[1]
    assert len(example.splitlines()) == 5 and "edlm_hf" not in example
    bare = hub.environment(without_package.home / "online")
    printed = without_package(example, **bare)
    assert re.fullmatch("[a-z ]{1,12}\\n", printed)
    assert "not a valid model identifier" in client(load_without_token, repo_id="me/private")


def load_without_token(repo_id):
    import edlm_hf

    try:
        edlm_hf.EDLMForMaskedDiffusion.from_pretrained(repo_id, token=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


OFFLINE = """
import sys, transformers
from hashlib import sha256
for repo_id, revision, expected in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    model = transformers.AutoModelForMaskedLM.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
    weights = sha256()
    for name, weight in sorted(model.state_dict().items()):
        weights.update(name.encode() + weight.double().numpy().tobytes())
    assert f"{type(model).__name__} {weights.hexdigest()}" == expected, repo_id
tokenizer = transformers.AutoTokenizer.from_pretrained("me/whole", trust_remote_code=True)
rows = model.generate(tokenizer.encode("ab", return_tensors="pt"), max_new_tokens=4)
assert tokenizer.decode(rows[0], skip_special_tokens=True).startswith("ab")
"""


def test_cache_made_by_hand_serves_offline_and_without_the_package(without_package, folder):
    cache, sha = without_package.home / "hf" / "hub", "0" * 39 + "1"
    build("denoiser").save_pretrained(folder.parent / "denoiser")
    sources = {"whole": folder, "part": folder.parent / "denoiser"}

    for name, source in sources.items():
        shutil.copytree(source, cache / f"models--me--{name}" / "snapshots" / sha)
        (cache / f"models--me--{name}" / "refs").mkdir()
        (cache / f"models--me--{name}" / "refs" / "main").write_text(sha)

    whole, part = fingerprint(build("nce")), fingerprint(build("denoiser"))
    without_package(OFFLINE, "me/part", "main", part, "me/whole", "main", whole, "me/whole", sha, whole)


PLAIN = """
import importlib.util, sys, transformers
assert importlib.util.find_spec("edlm_hf") is None
source, edited, new, *repositories = sys.argv[1:]
model = transformers.AutoModelForMaskedLM.from_pretrained(source, trust_remote_code=True)
model.save_pretrained(edited)
model.save_pretrained(new)
for repo_id in repositories:
    model.push_to_hub(repo_id, commit_message="Plain")
"""


@pytest.mark.parametrize("kind", ["nce", "denoiser"])
def test_code_of_a_checkpoint_saves_and_pushes_as_models_of_transformers_do(
    hub, client, without_package, tmp_path, kind
):
    build(kind).save_pretrained(tmp_path / "model")
    push = {"source": str(tmp_path / "model"), "auto_class": AUTO[kind], "facts": vars(FACTS)}
    client(push_model, repo_id=f"me/carded-{kind}", **push)
    edited, new = tmp_path / "edited", tmp_path / "new"
    edited.mkdir()
    (edited / "README.md").write_text("# Mine\n")

    repositories = f"me/plain-{kind}", f"me/carded-{kind}"
    online = hub.environment(without_package.home / f"plain-{kind}")
    without_package(PLAIN, tmp_path / "model", edited, new, *repositories, **online)

    # A card in a folder stays, and none is written
    assert (edited / "README.md").read_text() == "# Mine\n"
    assert set(contents(new)) == set(contents(tmp_path / "model")) - {"README.md"}

    # The form of transformers goes to a new repository, and the card of an old one stays
    assert "More Information Needed" in hub[f"me/plain-{kind}"].text("README.md")
    assert "| bits/char | 1.4322 | 0.0021 |" in hub[f"me/carded-{kind}"].text("README.md")
    assert hub[f"me/plain-{kind}"].messages[-1] == "Plain"
    for repo_id in repositories:
        assert client(load, repo_id=repo_id) == fingerprint(build(kind))


def push_own_code(source, repo_id):
    """A model whose class is the copy in its checkpoint, pushed where the package is installed."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    import edlm_hf
    from edlm_hf.cards import CardFacts
    from edlm_hf.hub import push

    model_class = get_class_from_dynamic_module("modeling_mdlm.MDLMForMaskedLM", source)
    assert not issubclass(model_class, edlm_hf.MDLMForMaskedLM) and model_class.sharing is None
    model = model_class.from_pretrained(source)
    model.config._name_or_path = "me/origin"
    push(model, repo_id, facts=CardFacts(data="a little"))


def test_model_with_the_code_of_its_checkpoint_is_pushed_with_our_card(hub, client, tmp_path):
    build("denoiser").save_pretrained(tmp_path)
    client(push_own_code, source=str(tmp_path), repo_id="me/own-code")
    text = hub["me/own-code"].text("README.md")
    card = ModelCard(text)
    assert is_untouched(text) and "a little" in card.text and card.data.base_model == ["me/origin"]
    assert client(load, repo_id="me/own-code") == fingerprint(build("denoiser"))
