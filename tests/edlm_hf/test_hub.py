"""The engine as a Hub repository: models of others with code of their own, in a process without this package."""

import re
import shutil

import foreign_models as foreign
import pytest
import torch
from bare import BarePython
from published import seed, tiny_causal, tiny_denoiser
from transformers import AutoModelForMaskedLM, GenerationMixin

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.hub import save_custom_generate
from edlm_hf.modeling.custom_generate import generate

MASK, PAD = 12, 11
PROMPT = torch.tensor([[3, MASK, 5, MASK, MASK, 7], [4, 2, MASK, MASK, 4, 9]])

SCRIPT = """
import importlib.util, sys, torch
assert importlib.util.find_spec("edlm_hf") is None
from transformers import AutoModel, GenerationMixin
folder, local, target = sys.argv[1:4]
MASK = 12
prompt = torch.tensor([[3, MASK, 5, MASK, MASK, 7], [4, 2, MASK, MASK, 4, 9]])
seed = lambda: torch.Generator().manual_seed(0)
results = {}
for name in ("llada", "dream"):
    model = AutoModel.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    for where in (local, "user/edlm-generate"):
        ask = lambda **kwargs: model.generate(
            prompt, custom_generate=where, trust_remote_code=True, max_denoising_steps=4, **kwargs
        )
        results[name, where == local] = {
            "filled": ask(generator=seed()),
            "longer": ask(generator=seed(), max_new_tokens=4, revision=None),
            "weighed": ask(generator=seed(), energy=lambda x, *_: (x == 1).sum(-1) * -9.0, num_candidates=16),
            "likeliest": ask(do_sample=False, sampler="first_hitting", attention_mask=torch.ones_like(prompt)),
        }
        for wrong in ({"num_beams": 3}, {"assistant_model": model}):
            try:
                ask(**wrong)
            except ValueError as error:
                results[name, where == local][next(iter(wrong))] = str(error)
    engine = GenerationMixin().load_custom_generate(local, trust_remote_code=True)
    results[name, "engine"] = engine(model, prompt, max_denoising_steps=4, generator=seed())
torch.save(results, target)
"""


def build(name, **changes):
    """LLaDA or its shifted twin with the same weights, in training mode."""
    classes = {
        "llada": (foreign.LLaDAModelLM, foreign.LLaDAConfig),
        "dream": (foreign.DreamModel, foreign.DreamConfig),
    }
    model_class, config_class = classes[name]
    torch.manual_seed(0)
    return model_class(config_class(pad_token_id=PAD, **changes)).train()


def prefer_ones(candidates, *_):
    return (candidates == 1).sum(-1) * -9.0


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What SCRIPT saw in an interpreter that has torch and transformers but neither this package nor a network."""
    home = tmp_path_factory.mktemp("home")
    for name in ("llada", "dream"):
        build(name).save_pretrained(home / name)
    local = save_custom_generate(home / "edlm-generate")
    repository = home / "hf" / "hub" / "models--user--edlm-generate"
    shutil.copytree(local, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    BarePython(home)(SCRIPT, home, local, home / "results")
    return torch.load(home / "results")


@pytest.mark.parametrize("local", [True, False], ids=["folder", "repository"])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_models_of_others_get_the_tokens_of_the_engine(elsewhere, name, local):
    reference = EDLMForMaskedDiffusion.from_components(build("llada"))
    got = elsewhere[name, local]
    expected = {
        "filled": reference.generate(PROMPT, max_denoising_steps=4, generator=seed()),
        "longer": reference.generate(PROMPT, max_denoising_steps=4, generator=seed(), max_new_tokens=4),
        "weighed": reference.generate(
            PROMPT, max_denoising_steps=4, generator=seed(), energy=prefer_ones, num_candidates=16
        ),
        "likeliest": reference.generate(PROMPT, sampler="first_hitting", do_sample=False),
    }

    for kind, tokens in expected.items():
        assert torch.equal(got[kind], tokens), kind
        assert (tokens != MASK).all()
        assert torch.equal(tokens[:, :6][PROMPT != MASK], PROMPT[PROMPT != MASK])
    assert got["longer"].shape == (2, 10)
    assert (got["weighed"] == 1).sum() > (got["filled"] == 1).sum()


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_engine_can_be_loaded_for_models_without_a_generate_of_their_own(elsewhere, name):
    assert torch.equal(elsewhere[name, "engine"], elsewhere[name, True]["filled"])


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_arguments_the_engine_does_not_know_are_refused_by_name(elsewhere, name):
    assert "does not know num_beams" in elsewhere[name, True]["num_beams"]
    assert "no use for assistant_model" in elsewhere[name, True]["assistant_model"]


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_model_is_left_as_it_was(name):
    model = build(name)
    model.head.eval()
    energy_model = tiny_causal(bos_token_id=0).train()

    def state():
        return [
            (module.training, "_is_hf_initialized" in vars(module))
            for part in (model, energy_model)
            for module in part.modules()
        ]

    before, config, weights = state(), model.config.to_dict(), {n: p.clone() for n, p in model.state_dict().items()}
    attention = model.config._attn_implementation
    generate(model, PROMPT, energy_model=energy_model, max_denoising_steps=2)
    with pytest.raises(ValueError, match="num_beams"):
        generate(model, PROMPT, num_beams=2)
    assert state() == before and model.config.to_dict() == config
    assert model.config._attn_implementation == attention
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.state_dict().items())


def test_ragged_rows_are_those_of_each_row_alone():
    ids = torch.tensor([[3, 4, MASK, 6], [5, 4, 2, PAD]])
    likeliest = {"max_new_tokens": 2, "do_sample": False, "sampler": "first_hitting"}
    for name in ("llada", "dream"):
        model = build(name)
        both = generate(model, ids, attention_mask=(ids != PAD).long(), **likeliest)
        first, second = (generate(model, row, **likeliest) for row in (ids[:1], ids[1:, :3]))
        assert torch.equal(both[:1], first) and torch.equal(both[1:, 4:], second[:, 3:])


def test_energy_model_weighs_the_proposals():
    model, causal = build("llada"), tiny_causal(bos_token_id=0)
    for energy_type in ("ar", "coar"):
        whole = EDLMForMaskedDiffusion.from_components(build("llada"), causal, energy_type=energy_type)
        expected = whole.generate(PROMPT, max_denoising_steps=3, generator=seed())
        got = generate(
            model, PROMPT, energy_model=causal, energy_type=energy_type, max_denoising_steps=3, generator=seed()
        )
        assert torch.equal(got, expected)

    with pytest.raises(ValueError, match="there is no energy_model"):
        generate(model, PROMPT, energy_type="nce")


def test_shift_is_that_of_the_argument_then_of_the_config_then_of_the_type():
    expected = generate(build("llada"), PROMPT, generator=seed())
    shifted = build("dream")
    shifted.config.model_type = "another"
    shifted.forward = lambda input_ids, attention_mask=None, return_dict=None: foreign.DreamModel.forward(
        shifted, input_ids
    )
    assert not torch.equal(generate(shifted, PROMPT, generator=seed()), expected)
    assert torch.equal(generate(shifted, PROMPT, logits_shift=1, generator=seed()), expected)

    shifted.config.logits_shift = 1
    assert torch.equal(generate(shifted, PROMPT, generator=seed()), expected)
    assert not torch.equal(generate(shifted, PROMPT, logits_shift=0, generator=seed()), expected)


def test_mask_token_is_looked_for_and_missed_with_advice():
    model = build("llada", mask_token_id=None)
    with pytest.raises(ValueError, match="LLaDAModelLM is not known.*Pass mask_token_id"):
        generate(model, PROMPT)
    expected = generate(model, PROMPT, mask_token_id=MASK, generator=seed())
    model.generation_config.mask_token_id = MASK
    assert torch.equal(generate(model, PROMPT, generator=seed()), expected)


def test_special_tokens_of_the_generation_config_end_the_text():
    model = build("llada")
    model.generation_config.eos_token_id = list(range(11))
    tokens = generate(model, torch.tensor([[3]]), max_new_tokens=5, generator=seed())
    assert tokens[0, 1] < 11 and (tokens[0, 2:] == PAD).all()
    whole = generate(model, torch.tensor([[3]]), max_new_tokens=5, eos_token_id=None, generator=seed())
    assert (whole[0, 2:] != PAD).any()


def test_inputs_are_given_once():
    model = build("llada")
    expected = generate(model, PROMPT, generator=seed())
    assert torch.equal(generate(model, inputs=PROMPT, synced_gpus=False, generator=seed()), expected)
    with pytest.raises(ValueError, match="Both inputs and input_ids"):
        generate(model, PROMPT, inputs=PROMPT)


def test_folder_holds_code_needs_and_card(tmp_path):
    folder = save_custom_generate(tmp_path / "new" / "folder")
    assert {path.name for path in folder.iterdir()} == {"custom_generate", "README.md"}
    needed = (folder / "custom_generate" / "requirements.txt").read_text().split()
    assert {line.split(">")[0] for line in needed} == {"torch", "transformers"}

    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "- custom_generate\n" in card
    sections = ["Description", "Model compatibility", "Additional Arguments", "Output Type changes"]
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == sections
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    for file in (folder / "custom_generate").glob("*.py"):
        assert "edlm_hf.modeling" not in file.read_text().replace("`edlm_hf.modeling`", ""), file.name


def test_engine_leaves_the_classes_of_the_package_registered(tmp_path):
    folder = save_custom_generate(tmp_path / "engine")
    engine = GenerationMixin().load_custom_generate(str(folder), trust_remote_code=True)
    rows = engine(tiny_denoiser(), PROMPT, max_denoising_steps=2)
    assert MASK not in rows

    tiny_denoiser().save_pretrained(tmp_path / "mdlm")
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / "mdlm"), MDLMForMaskedLM)


def test_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    save_custom_generate(tmp_path / "empty")
    before = sorted(path.name for path in (tmp_path / "empty").iterdir())
    with pytest.raises(ValueError, match="not an empty folder"):
        save_custom_generate(tmp_path / "empty")

    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not an empty folder"):
        save_custom_generate(tmp_path / "file")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == before
