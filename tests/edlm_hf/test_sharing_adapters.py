"""Adapters on a Hub: their cards, their bases, and the energies that they are loaded with."""

import re
import shutil
from importlib.metadata import version

import pytest
from huggingface_hub import ModelCard
from packaging.version import Version
from pushed_models import build, command
from transformers.integrations.peft import MIN_PEFT_VERSION

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.adapter_loading import scope_of_adapter
from edlm_hf.cards import CardFacts
from edlm_hf.hub import write_better_card


def run(script):
    exec(script, {})


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
    config = peft.LoraConfig(
        r=2,
        target_modules=target,
        modules_to_save=["energy_head"],
        init_lora_weights=False,
    )
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
    assert card.data.library_name == "peft"
    assert card.data.base_model == ["me/base"]
    assert "lora" in card.data.tags
    assert "More Information Needed" not in readme
    assert "model.safetensors" not in hub[repo_id].files()

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
    assert loaded[0] == pytest.approx(adapted[0], abs=1e-4)
    assert loaded[0] != pytest.approx(bare[0], abs=1e-2)


def test_the_card_of_an_adapter_keeps_the_scope_that_it_was_trained_for(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}')
    config = EDLMForMaskedDiffusion.from_components(build("denoiser"), energy_type="nce").config
    for scope in ("sequence", "revealed"):  # whatever the configuration of the base says
        config.energy_scope = scope
        (tmp_path / "README.md").unlink(missing_ok=True)
        write_better_card(tmp_path, config=config)
        # A push of the folder knows no configuration
        write_better_card(tmp_path, CardFacts(data="a little"))
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
    config = peft.LoraConfig(
        r=2,
        target_modules=LORA_TARGET_MODULES,
        modules_to_save=LORA_MODULES_TO_SAVE,
    )
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
    places = {
        "base": str(folder),
        "causal": str(tmp_path / "causal"),
        "folder": str(tmp_path / "adapter"),
    }
    adapter, whole = client(push_local, repo_id="me/local", **places)
    assert f"base model is '{folder}', which is no repository of the Hub" in adapter
    assert f"by reference to '{tmp_path / 'causal'}', which is no repository of the Hub" in whole
    assert client(command, arguments=["push", str(tmp_path / "adapter"), "me/local"])[0] == 1
    assert "me/local" not in hub.repositories
