"""Pushing to a Hub and loading from it, with the model card: a local server, other processes, a cache made by hand."""

import json
import re
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from bare import BarePython
from hub_client import fingerprint
from huggingface_hub import ModelCard
from packaging.version import Version
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from transformers.integrations.peft import MIN_PEFT_VERSION

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMModel, checkpoint
from edlm_hf.adapter_loading import scope_of_adapter
from edlm_hf.card_signatures import UNKNOWN, is_untouched
from edlm_hf.cards import CardFacts, model_card, with_names
from edlm_hf.hub import save_custom_generate, write_better_card
from edlm_hf.markdown import code_span
from edlm_hf.tokenization import text8_tokenizer

TOKENIZER = text8_tokenizer(12)
VOCABULARY = {"vocab_size": len(TOKENIZER), "bos_token_id": TOKENIZER.bos_token_id}
FACTS = CardFacts(
    data="text8, 90M characters",
    datasets=["afmck/text8"],
    command="edlm train-energy recipes/text8/energy.yaml",
    results={"bits/char": (1.4321987, 0.00213), "steps": (1000, None)},
    measured="text8, test split",
    license="mit",
)


def build(kind):
    if kind == "denoiser":
        return tiny_denoiser(**VOCABULARY)
    if kind == "drafter":
        return tiny_denoiser(**VOCABULARY, draft_width=2)
    if kind == "causal":
        return tiny_causal(**VOCABULARY)
    if kind == "trunk":
        return randomised(MDLMModel(tiny_config(**VOCABULARY)))
    if kind == "energy":
        return randomised(EDLMEnergyModel(tiny_config(**VOCABULARY)))
    energy = {"nce": "energy", "ar": "causal"}[kind]
    return EDLMForMaskedDiffusion.from_components(build("denoiser"), build(energy), energy_type=kind)


AUTO = {
    "nce": "AutoModelForMaskedLM",
    "denoiser": "AutoModelForMaskedLM",
    "drafter": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "trunk": "AutoModel",
    "energy": "EDLMEnergyModel",
}


@pytest.fixture(scope="module")
def without_package(tmp_path_factory):
    return BarePython(tmp_path_factory.mktemp("home"))


@pytest.fixture
def folder(tmp_path):
    """A complete model with its tokenizer."""
    build("nce").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------- what runs in the process that knows the server


def push_model(source, auto_class, repo_id, facts=None, model_tags=(), **options):
    import transformers

    import edlm_hf
    from edlm_hf.cards import CardFacts

    model = getattr(transformers, auto_class, None) or getattr(edlm_hf, auto_class)
    model = model.from_pretrained(source)
    model.add_model_tags(list(model_tags))
    model.card_facts = facts and CardFacts(**facts)
    return model.push_to_hub(repo_id, **options).oid


def load(repo_id, auto_class="AutoModelForMaskedLM", **options):
    import transformers
    from hub_client import fingerprint

    import edlm_hf

    model = getattr(transformers, auto_class, None) or getattr(edlm_hf, auto_class)
    return fingerprint(model.from_pretrained(repo_id, **options))


def command(arguments):
    """`edlm ...`: exit code and what was printed."""
    from typer.testing import CliRunner

    from edlm_hf.cli import app

    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def run(script):
    exec(script, {})


# --------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("kind", AUTO)
def test_pushed_model_loads_and_its_card_is_ours(hub, client, tmp_path, kind):
    model = build(kind)
    model.save_pretrained(tmp_path)
    client(push_model, source=str(tmp_path), auto_class=AUTO[kind], repo_id=f"me/{kind}", tags=["tiny"])
    assert client(load, repo_id=f"me/{kind}", auto_class=AUTO[kind]) == fingerprint(model)
    card = ModelCard(hub[f"me/{kind}"].text("README.md"))
    assert card.data.library_name == "transformers" and {"masked-diffusion", "tiny"} <= set(card.data.tags)
    tasks = {"nce": "text-generation", "denoiser": "fill-mask", "drafter": "fill-mask", "causal": "text-generation"}
    assert card.data.pipeline_tag == tasks.get(kind, "feature-extraction" if kind == "trunk" else None)
    assert card.data.base_model is None and str(tmp_path) not in str(card)
    assert f'from_pretrained("me/{kind}"' in card.text and "REPOSITORY" not in card.text
    assert is_untouched(hub[f"me/{kind}"].text("README.md"))
    assert len(hub[f"me/{kind}"].messages) == 2  # the empty repository, and everything in one commit


def push_tokenizer(source, repo_id):
    import transformers

    transformers.AutoTokenizer.from_pretrained(source).push_to_hub(repo_id)


def test_pushed_tokenizer_leaves_the_card_as_it_is(hub, client, folder):
    client(push_model, source=str(folder), auto_class=AUTO["nce"], repo_id="me/parts")
    before = hub["me/parts"].text("README.md")
    client(push_tokenizer, source=str(folder), repo_id="me/parts")
    assert hub["me/parts"].text("README.md") == before and is_untouched(before)


def test_examples_of_the_card_run_without_the_package_and_from_a_private_repository(
    hub, client, without_package, folder
):
    code, out, err = client(command, arguments=["push", str(folder), "me/private", "--private", "--json"])
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
    assert result["commit"] == hub["me/pinned"].branches["v2"] and hub["me/pinned"].messages[-1] == "Second"
    assert client(load, repo_id="me/pinned") == fingerprint(first)
    assert client(load, repo_id="me/pinned", revision="v2") == fingerprint(second)
    client(push_model, source=str(tmp_path / "second"), **push)
    assert client(load, repo_id="me/pinned") == fingerprint(second)
    assert client(load, repo_id="me/pinned", revision=commit) == fingerprint(first)


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


def test_a_checkpoint_that_ships_is_pushed_by_its_name_and_left_as_it_is(hub, client):
    shipped = checkpoint("edlm-books-ar")
    before = contents(Path(shipped))
    code, _, err = client(command, arguments=["push", "edlm-books-ar", "me/books-ar"])
    assert code == 0, err
    assert contents(Path(shipped)) == before
    pushed = client(load, repo_id="me/books-ar", auto_class=AUTO["causal"])
    assert pushed == fingerprint(MDLMForCausalLM.from_pretrained(shipped))


# ------------------------------------------------------------------------------------------------------------ adapters


def push_adapter_of_peft(base, repo_id, scope):
    """An adapter of PEFT, pushed: energies of the base, with the adapter before the push, and loaded again.

    `scope` is the adapter's, whatever the base says.
    """
    import peft
    import torch
    import transformers

    import edlm_hf  # noqa: F401
    from edlm_hf.cards import CardFacts
    from edlm_hf.hub import push

    target = r"energy_model\.blocks\.\d+\.attn_qkv"
    noisy, clean = torch.tensor([[3, 28, 5, 28]]), torch.tensor([[[3, 1, 5, 0], [3, 2, 5, 7]]])

    def energy(model):
        return model.energy(clean, noisy).tolist()

    torch.manual_seed(0)
    load = transformers.AutoModelForMaskedLM.from_pretrained
    config = peft.LoraConfig(r=2, target_modules=target, modules_to_save=["energy_head"], init_lora_weights=False)
    model = peft.get_peft_model(load(base, energy_scope=scope), config).eval()
    with torch.no_grad():
        model.energy_model.energy_head.modules_to_save["default"][0].weight.mul_(1.5)
        push(model, repo_id, facts=CardFacts(data="a little"))
        return energy(load(base)), energy(model), energy(load(repo_id))


def push_adapter_of_transformers(base, repo_id):
    """An adapter that a model of transformers holds itself, pushed: energies as above."""
    import peft
    import torch
    import transformers

    import edlm_hf  # noqa: F401

    target = r"energy_model\.blocks\.\d+\.attn_qkv"
    noisy, clean = torch.tensor([[3, 28, 5, 28]]), torch.tensor([[[3, 1, 5, 0], [3, 2, 5, 7]]])

    def energy(model):
        return model.energy(clean, noisy).tolist()

    torch.manual_seed(0)
    load = transformers.AutoModelForMaskedLM.from_pretrained
    model = load(base)
    with torch.no_grad():
        model.add_adapter(peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False))
        model.push_to_hub(repo_id)
        return energy(load(base)), energy(model), energy(load(repo_id))


def check_adapter(hub, client, repo_id, energies, scope):
    """That an adapter of `me/base` has changed the energies, is loaded as it was, and has a card that runs."""
    bare, pushed, loaded = energies
    assert pushed == loaded != bare

    readme = hub[repo_id].text("README.md")
    card = ModelCard(readme)
    assert card.data.library_name == "peft" and card.data.base_model == ["me/base"] and "lora" in card.data.tags
    assert "More Information Needed" not in readme and "model.safetensors" not in hub[repo_id].files()

    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    client(run, script=f"{blocks[0]}\nassert model.config.energy_scope == '{scope}'")
    assert all(('energy_scope="revealed"' in block) == (scope == "revealed") for block in blocks)
    return card.text


def test_an_adapter_is_pushed_with_a_card_and_loads_on_its_base(hub, client, folder):
    assert client(command, arguments=["push", str(folder), "me/base"])[0] == 0
    energies = client(push_adapter_of_peft, base="me/base", repo_id="me/peft", scope="revealed")
    assert "a little" in check_adapter(hub, client, "me/peft", energies, "revealed")


@pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"add_adapter of this version of transformers asks for peft {MIN_PEFT_VERSION} or newer",
)
def test_an_adapter_of_transformers_is_pushed_with_a_card_and_loads_on_its_base(hub, client, folder):
    assert client(command, arguments=["push", str(folder), "me/base"])[0] == 0
    energies = client(push_adapter_of_transformers, base="me/base", repo_id="me/native")
    assert "a little" not in check_adapter(hub, client, "me/native", energies, "sequence")


def adapt_shipped(folder):
    """An adapter of the energy of `edlm-books`, saved in a folder: energies without it and with it."""
    import peft
    import torch
    import transformers

    import edlm_hf
    from edlm_hf.training import energy_lora

    torch.manual_seed(0)
    base = transformers.AutoModelForMaskedLM.from_pretrained(edlm_hf.checkpoint("edlm-books"))
    mask = base.config.mask_token_id
    noisy, clean = torch.tensor([[30, mask, 50, mask]]), torch.tensor([[[30, 100, 50, 90], [30, 200, 50, 700]]])
    with torch.no_grad():
        bare = base.energy(clean, noisy).tolist()
        config = energy_lora(2, 4)
        config.init_lora_weights = False
        model = peft.get_peft_model(base, config).eval()
        model.peft_config["default"].base_model_name_or_path = "edlm-books"
        model.save_pretrained(folder)
        return bare, model.energy(clean, noisy).tolist()


def energies_by_name(repo_id):
    """The same energies of a model that is loaded as the commands load one."""
    import torch

    from edlm_hf.loading import load_masked

    model = load_masked(repo_id)
    mask = model.config.mask_token_id
    noisy, clean = torch.tensor([[30, mask, 50, mask]]), torch.tensor([[[30, 100, 50, 90], [30, 200, 50, 700]]])
    with torch.no_grad():
        return model.energy(clean, noisy).tolist()


def test_an_adapter_of_a_checkpoint_that_ships_is_pushed_and_loads_elsewhere(hub, client, tmp_path):
    bare, adapted = client(adapt_shipped, folder=str(tmp_path / "adapter"))
    assert client(command, arguments=["push", str(tmp_path / "adapter"), "me/tyger"])[0] == 0
    files = hub["me/tyger"].files()
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files

    # Loading merges the updates into the weights, which rounds
    shutil.rmtree(tmp_path / "adapter")
    loaded = client(energies_by_name, repo_id="me/tyger")
    assert loaded[0] == pytest.approx(adapted[0], abs=1e-4) != pytest.approx(bare[0], abs=1e-2)


def test_the_card_of_an_adapter_keeps_the_scope_that_it_was_trained_for(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}')
    config = EDLMForMaskedDiffusion.from_components(build("denoiser"), energy_type="nce").config
    for scope in ("sequence", "revealed"):  # whatever the configuration of the base says
        config.energy_scope = scope
        (tmp_path / "README.md").unlink(missing_ok=True)
        write_better_card(tmp_path, config=config)
        write_better_card(tmp_path, CardFacts(data="a little"))  # a push of the folder knows no configuration
        card = (tmp_path / "README.md").read_text()
        assert card.count(f'energy_scope="{scope}"') == 2 and "a little" in card
        (tmp_path / "README.md").write_text("Written by hand.")
        assert scope_of_adapter(str(tmp_path), {}) == scope


def push_shared(base, repo_id):
    """Adapters of an energy that shares the denoiser's weights: energies with them, before and after a push."""
    import peft
    import torch
    import transformers

    import edlm_hf
    from edlm_hf.hub import push
    from edlm_hf.training import LORA_MODULES_TO_SAVE, LORA_TARGET_MODULES

    noisy, clean = torch.tensor([[3, 28, 5, 28]]), torch.tensor([[[3, 1, 5, 0], [3, 2, 5, 7]]])
    torch.manual_seed(0)
    denoiser = edlm_hf.MDLMForMaskedLM.from_pretrained(base)
    build, options = edlm_hf.EDLMForMaskedDiffusion.from_components, {"energy_type": "nce", "energy_weights": "shared"}
    build(denoiser, **options).push_to_hub(repo_id, private=True)
    load = transformers.AutoModelForMaskedLM.from_pretrained
    config = peft.LoraConfig(r=2, target_modules=LORA_TARGET_MODULES, modules_to_save=LORA_MODULES_TO_SAVE)
    model, energies = peft.get_peft_model(load(repo_id), config).eval(), []
    with torch.no_grad():
        for send, revision in (
            (lambda: push(model, f"{repo_id}-lora", private=True), None),
            (lambda: push(model, f"{repo_id}-lora", revision="v2"), "v2"),
            (lambda: model.push_to_hub(f"{repo_id}-by-peft"), None),
        ):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
            send()
            name = f"{repo_id}-lora" if len(energies) < 2 else f"{repo_id}-by-peft"
            loaded = peft.PeftModel.from_pretrained(load(repo_id), name, revision=revision)
            energies.append([model.energy(clean, noisy).tolist(), loaded.energy(clean, noisy).tolist()])
        loaded = peft.PeftModel.from_pretrained(load(repo_id), f"{repo_id}-lora")
        return [*energies, [energies[0][0], loaded.energy(clean, noisy).tolist()]]


def test_adapters_of_a_shared_energy_are_pushed_alone_in_private_and_by_revision(hub, client, folder):
    found = client(push_shared, base=str(folder), repo_id="me/shared")
    assert all(pushed == loaded for pushed, loaded in found)
    assert len({str(pushed) for pushed, _ in found}) == 3  # the first one is still there beside v2
    for name in ("me/shared-lora", "me/shared-by-peft"):
        files = hub[name].files()
        assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert hub["me/shared-lora"].private and not hub["me/shared-by-peft"].private
    assert ModelCard(hub["me/shared-lora"].text("README.md")).data.base_model == ["me/shared"]


def push_local(base, causal, repo_id, folder):
    import peft
    import transformers

    import edlm_hf
    from edlm_hf.hub import push

    denoiser = edlm_hf.MDLMForMaskedLM.from_pretrained(base)
    whole = edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_by_reference=True)
    adapted = transformers.AutoModelForMaskedLM.from_pretrained(base)
    adapted = peft.get_peft_model(adapted, peft.LoraConfig(r=2, target_modules=["attn_qkv"]))
    adapted.save_pretrained(folder)
    errors = []
    for model in (adapted, whole):
        try:
            push(model, repo_id)
        except ValueError as error:
            errors.append(str(error))
    return errors


def test_what_others_could_not_load_is_refused_before_anything_is_made(hub, client, folder, tmp_path):
    build("causal").save_pretrained(tmp_path / "causal")
    places = {"base": str(folder), "causal": str(tmp_path / "causal"), "folder": str(tmp_path / "adapter")}
    adapter, whole = client(push_local, repo_id="me/local", **places)
    assert f"base model is '{folder}', which is no repository of the Hub" in adapter
    assert f"by reference to '{tmp_path / 'causal'}', which is no repository of the Hub" in whole
    assert client(command, arguments=["push", str(tmp_path / "adapter"), "me/local"])[0] == 1
    assert "me/local" not in hub.repositories


# -------------------------------------------------------------------------------------------------------- interruption


def test_interrupted_push_changes_nothing_and_can_be_repeated(hub, client, folder):
    before = contents(folder)
    hub.interruptions = 1
    code, _, err = client(command, arguments=["push", str(folder), "me/cut"])
    assert code == 1 and err.splitlines()[-1].startswith("edlm push: ") and "repeat the command" in err
    assert contents(folder) == before
    assert set(hub["me/cut"].files()) == {".gitattributes"}

    code, out, _ = client(command, arguments=["push", str(folder), "me/cut"])
    assert code == 0 and hub["me/cut"].branches["main"] in out
    assert contents(folder) == before
    stored = {name: content for name, content in hub["me/cut"].files().items() if name != ".gitattributes"}
    assert set(stored) == set(before)
    assert {name for name in before if stored[name] != before[name]} == {"README.md"}  # it knows its repository now
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
    assert {name for name in stored if "safetensors" in name} == {"model.safetensors"} and "notes.txt" in stored
    assert not stored & {"optimizer.pt", "training_args.bin", ".secret"}
    assert client(load, repo_id="me/shards") == fingerprint(build("nce"))


# ------------------------------------------------------------------------------------------------------------ the card


def test_card_says_what_was_measured_and_what_is_missing(tmp_path):
    model = build("nce")
    model.save_pretrained(tmp_path)
    bare = (tmp_path / "README.md").read_text()
    assert bare.count(UNKNOWN) == 4 and "`nce`" in bare and "| vocabulary | 29 |" in bare
    model.card_facts = FACTS
    model.save_pretrained(tmp_path)
    full = (tmp_path / "README.md").read_text()
    assert UNKNOWN not in full and "```bash\nedlm train-energy recipes/text8/energy.yaml\n```" in full
    assert "| bits/char | 1.4322 | 0.0021 |" in full and "| steps | 1000 |  |" in full
    data = ModelCard(full).data
    assert data.license == "mit" and data.datasets == ["afmck/text8"]
    found = [(result.metric_type, result.metric_value, result.dataset_name) for result in data.eval_results]
    assert found == [("bits/char", "1.4322 ± 0.0021", FACTS.measured), ("steps", 1000, FACTS.measured)]
    named = ModelCard(with_names(full, "me/model")).data
    assert (named.model_name, named.eval_results) == ("me/model", data.eval_results)
    model.card_facts = None
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == full  # what is known is not lost to a save that knows less


HOSTILE = "x`\n```\n# Injected\n---\nlicense: mit\n| a | b |"


def test_names_in_a_card_write_nothing_else_into_it(tmp_path):
    """Names of data and revisions come from files, command lines and configurations of others."""
    model = EDLMForMaskedDiffusion.from_components(build("denoiser"), build("causal"))
    model.config.energy_name_or_path, model.config.energy_revision = "somebody/energy", HOSTILE
    model.card_facts = CardFacts(
        data=f"On {code_span(HOSTILE)}.",
        datasets=[HOSTILE],
        command=shlex.join(["edlm", "train-denoiser", "--dataset", HOSTILE]),
        results={HOSTILE: (1.0, None)},
        license=HOSTILE,
    )
    card = ModelCard(model_card("EDLMForMaskedDiffusion", model.config, model.card_facts, tags=[HOSTILE]))
    assert card.data.license == HOSTILE and card.data.datasets == [HOSTILE] and HOSTILE in card.data.tags
    outside = re.sub(r"^(````+|```)\w+\n.*?^\1$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert "\n# Injected" in card.text and "\n# Injected" not in outside and "\n---" not in outside
    assert len(re.findall("^# ", outside, re.MULTILINE)) == 1 and outside.count("\n|---") == 2
    cells = [line for line in outside.splitlines() if "Injected" in line and line.startswith("|")]
    assert len(cells) == 2 and all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in cells)


@pytest.mark.parametrize("start", [None, 27])
def test_card_generates_from_the_start_token_where_there_is_one(tmp_path, start):
    tiny_denoiser(vocab_size=29, mask_token_id=28, bos_token_id=start, model_length=12).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("model.generate(max_denoising_steps=128)") == (0 if start else 2)
    from_start = "model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=11,"
    assert card.count(from_start) == (2 if start else 0)


@pytest.mark.parametrize("written", ["by hand", "ours, edited"])
def test_card_of_the_user_is_kept_by_every_save(tmp_path, written):
    model = build("denoiser")
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    own = "My own words.\n" if written == "by hand" else path.read_text().replace(UNKNOWN, "A secret.", 1)
    path.write_text(own)
    model.card_facts = FACTS
    model.save_pretrained(tmp_path)
    assert path.read_text() == own


def test_card_edited_on_the_hub_is_kept_by_every_push(hub, client, folder):
    arguments = ["push", str(folder), "me/edited"]
    assert client(command, arguments=arguments)[0] == 0
    repository = hub["me/edited"]
    edited = repository.text("README.md").replace(UNKNOWN, "Books.", 1)
    repository.commit("main", repository.files() | {"README.md": edited.encode()}, "Edit")
    (folder / "notes.txt").write_text("new")
    assert client(command, arguments=arguments)[0] == 0
    client(push_model, source=str(folder), auto_class=AUTO["nce"], repo_id="me/edited", facts=vars(FACTS))
    assert repository.text("README.md") == edited and "notes.txt" in repository.files()
    (folder / "README.md").write_text("# By hand\n")
    assert client(command, arguments=arguments)[0] == 0
    assert repository.text("README.md") == "# By hand\n"


def test_facts_reach_the_hub_and_are_not_lost_to_a_later_push(hub, client, folder):
    source = {"source": str(folder), "auto_class": AUTO["nce"], "repo_id": "me/facts"}
    client(push_model, **source)
    client(push_model, **source, facts=vars(FACTS))
    full = hub["me/facts"].text("README.md")
    assert "| bits/char | 1.4322 | 0.0021 |" in full
    client(push_model, **source)
    assert hub["me/facts"].text("README.md") == full


def push_whole(denoiser, causal, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar")
    model.push_to_hub(repo_id)
    edlm_hf.EDLMForMaskedDiffusion.from_pretrained(repo_id).push_to_hub(repo_id, commit_message="Again", tags=["again"])
    edlm_hf.EDLMForMaskedDiffusion.from_pretrained(repo_id).push_to_hub(f"{repo_id}-2")


def test_base_models_are_the_parts_and_never_the_repository_itself(hub, client, tmp_path):
    for kind in ("denoiser", "causal"):
        build(kind).save_pretrained(tmp_path / kind)
        client(push_model, source=str(tmp_path / kind), auto_class=AUTO[kind], repo_id=f"me/of-{kind}")
    client(push_whole, denoiser="me/of-denoiser", causal="me/of-causal", repo_id="me/of-both")
    first, again = list(hub["me/of-both"].commits)[1:]
    assert ModelCard(hub["me/of-both"].text("README.md", first)).data.base_model == ["me/of-denoiser", "me/of-causal"]
    assert "me/of-both" not in (ModelCard(hub["me/of-both"].text("README.md", again)).data.base_model or [])
    assert ModelCard(hub["me/of-both-2"].text("README.md")).data.base_model == ["me/of-both"]


def save_and_push(source, target, repo_id):
    import edlm_hf

    model = edlm_hf.EDLMForMaskedDiffusion.from_pretrained(source)
    model.save_pretrained(target, push_to_hub=True, repo_id=repo_id, commit_message="Saved")


def test_saving_with_push_to_hub_pushes_our_card_and_keeps_the_one_here(hub, client, folder, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "README.md").write_text("# Mine\n")
    client(save_and_push, source=str(folder), target=str(tmp_path / "target"), repo_id="me/saved")
    assert hub["me/saved"].text("README.md") == "# Mine\n" == (tmp_path / "target" / "README.md").read_text()
    assert hub["me/saved"].messages[-1] == "Saved"


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


# ------------------------------------------------------------------------------------------------- without the package


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


# --------------------------------------------------------------------------------------------------------- the command


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
    assert code == 0 and all(option in out for option in ("--private", "--revision", "--commit-message", "--json"))
    assert set(hub.repositories) == before


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"results": {"a": (None, None)}}, r"results of the card has 'a': \(None, None\), but every name has a pair"),
        ({"results": {"a": 1.0}}, "results of the card has 'a': 1.0"),
        ({"results": {"a": (torch.tensor(1.0), None)}}, "Call float"),
        ({"results": {"a": (1.0, "x")}}, "results of the card has 'a'"),
        ({"results": {1: (1.0, None)}}, "results of the card has 1"),
        ({"results": [("a", 1.0)]}, "results of the card is"),
        ({"license": ["mit"]}, r"license of the card is \['mit'\], but it must be a text"),
        ({"data": {"a": 1}}, "data of the card is"),
        ({"datasets": "abc"}, "datasets of the card is 'abc', but it must be a list of names"),
        ({"language": 1}, "language of the card is 1"),
    ],
)
def test_facts_of_another_kind_are_refused_where_they_are_given(facts, message):
    with pytest.raises(ValueError, match=message):
        CardFacts(**facts)


def test_numbers_of_numpy_and_several_languages_are_facts():
    facts = CardFacts(
        results={"loss": (np.float32(1.5), np.float64(0.25)), "perplexity": (3, None)}, language=["en", "de"]
    )
    card = model_card("MDLMForMaskedLM", None, facts)
    assert "| loss | 1.5 | 0.25 |" in card and ModelCard(card).data.language == ["en", "de"]
