"""Code of repositories: whose is run for `trust_remote_code=True`, and whose only for `trust_energy_code=True`."""

import json
from pathlib import Path

import pytest
import torch
from bare import BarePython
from peft import LoraConfig, get_peft_model
from published import tiny_denoiser, tiny_gpt2
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.modeling.custom_generate import generate
from edlm_hf.tokenization import text8_tokenizer

REFUSED = "needs the code in its repository.*trust_energy_code=True with the commit as energy_revision"

CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Config(GPT2Config):
    model_type = "somebody_else"
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


class Repository:
    """The folder of a causal language model that needs code of its own, which leaves a trace when it is run."""

    def __init__(self, path: Path):
        self.path = path
        self.trace = path.parent / "RAN"
        tiny_gpt2().save_pretrained(path)
        self.change("config.json", model_type="somebody_else")
        self.change(
            "config.json",
            auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        )
        (path / "code.py").write_text(CODE.format(ran=str(self.trace)))

    def change(self, file: str, **values):
        content = json.loads((self.path / file).read_text()) | values
        (self.path / file).write_text(json.dumps(content))

    def add_tokenizer(self):
        text8_tokenizer(12).save_pretrained(self.path)
        self.change(
            "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map={"AutoTokenizer": [None, "code.Tokenizer"]}
        )

    @property
    def ran(self) -> bool:
        return self.trace.exists()


@pytest.fixture
def stranger(tmp_path) -> Repository:
    return Repository(tmp_path / "stranger")


@pytest.fixture
def whole(tmp_path, stranger) -> Path:
    """A composite whose configuration names the stranger's repository as its energy."""
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    model = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(), str(tmp_path / "gpt2"), energy_type="ar", energy_by_reference=True
    )
    model.save_pretrained(tmp_path / "whole")
    write_config(tmp_path / "whole", energy_name_or_path=str(stranger.path))
    return tmp_path / "whole"


def write_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("loader", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM, EDLMForMaskedDiffusion])
@pytest.mark.parametrize("trust", [None, False, True])
def test_trust_in_a_composite_is_not_trust_in_the_energy_that_it_names(whole, stranger, loader, trust):
    with pytest.raises(ValueError, match=REFUSED):
        loader.from_pretrained(whole, trust_remote_code=trust)
    assert not stranger.ran


def test_a_configuration_cannot_trust_its_energy_itself(whole, stranger):
    write_config(whole, trust_energy_code=True, trust_remote_code=True)
    for loader in (AutoModelForMaskedLM, EDLMForMaskedDiffusion):
        with pytest.raises(ValueError, match=REFUSED):
            loader.from_pretrained(whole, trust_remote_code=True)
    assert not stranger.ran


@torch.no_grad()
@pytest.mark.parametrize("loader", [AutoModelForMaskedLM, EDLMForMaskedDiffusion])
def test_an_energy_with_code_loads_when_it_is_asked_for(whole, stranger, loader):
    loaded = loader.from_pretrained(whole, trust_energy_code=True, energy_revision="main")
    assert stranger.ran and type(loaded.energy_model).__name__ == "Model"
    ids = torch.tensor([[3, 1, 5]])
    torch.testing.assert_close(loaded.energy_model(ids).logits, tiny_gpt2()(ids).logits)
    assert loaded.config.energy_revision == "main"


WITHOUT_PACKAGE = """
import importlib.util, os, sys
assert importlib.util.find_spec("edlm_hf") is None
from transformers import AutoModelForMaskedLM
whole, trace = sys.argv[1:]
try:
    AutoModelForMaskedLM.from_pretrained(whole, trust_remote_code=True)
except ValueError as error:
    print("trust_energy_code=True" in str(error), os.path.exists(trace))
model = AutoModelForMaskedLM.from_pretrained(whole, trust_remote_code=True, trust_energy_code=True)
print(type(model).__module__.partition(".")[0], type(model.energy_model).__name__, os.path.exists(trace))
"""


def test_code_that_travels_with_a_composite_asks_in_the_same_way(tmp_path, whole, stranger):
    printed = BarePython(tmp_path)(WITHOUT_PACKAGE, whole, stranger.trace)
    assert printed.splitlines() == ["True False", "transformers_modules Model True"]


def test_an_adapter_does_not_bring_the_code_of_the_energy_of_its_base(tmp_path, whole, stranger):
    base = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    get_peft_model(base, LoraConfig(r=2, target_modules=["attn_qkv"])).save_pretrained(tmp_path / "lora")
    write = json.loads((tmp_path / "lora/adapter_config.json").read_text()) | {"base_model_name_or_path": str(whole)}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(write))
    with pytest.raises(ValueError, match=REFUSED):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "lora", trust_remote_code=True)
    assert not stranger.ran


def test_components_by_name_are_trusted_one_by_one(tmp_path, whole, stranger):
    tiny_denoiser().save_pretrained(tmp_path / "denoiser")
    build, name = EDLMForMaskedDiffusion.from_components, str(stranger.path)
    for denoiser, energy in (
        (str(tmp_path / "denoiser"), name),  # the energy
        (tiny_denoiser(), name),
        (str(whole), None),  # that of the composite which is the denoiser
    ):
        with pytest.raises(ValueError, match=REFUSED):
            build(denoiser, energy, trust_remote_code=True)
    assert not stranger.ran
    assert type(build(tiny_denoiser(), name, trust_energy_code=True).energy_model).__name__ == "Model"
    assert stranger.ran


@pytest.mark.parametrize("given", ["energy", "energy_tokenizer"])
def test_a_tokenizer_of_the_energy_is_trusted_as_the_energy_is(stranger, given):
    stranger.add_tokenizer()
    energy = {"energy": str(stranger.path)} if given == "energy" else {"energy": tiny_gpt2()}
    tokenizers = {"tokenizer": text8_tokenizer(12)} | ({} if given == "energy" else {given: str(stranger.path)})
    with pytest.raises(ValueError, match=f"{stranger.path}.*{REFUSED}"):
        EDLMForMaskedDiffusion.from_components(
            tiny_denoiser(),
            **energy,
            **tokenizers,
            trust_remote_code=True,
        )
    assert not stranger.ran


def test_the_engine_runs_no_code_of_an_energy(stranger):
    with pytest.raises(ValueError, match="load the energy yourself"):
        generate(tiny_denoiser(), torch.tensor([[3, 12]]), energy_model=str(stranger.path))
    assert not stranger.ran


def test_a_composite_that_refers_to_itself_is_refused(whole):
    write_config(whole, energy_name_or_path=str(whole))
    with pytest.raises(ValueError, match="is itself a composite"):
        AutoModelForMaskedLM.from_pretrained(whole)
    with pytest.raises(ValueError, match="is itself a composite"):
        EDLMForMaskedDiffusion.from_components(tiny_denoiser(), str(whole))


def test_parts_of_a_configuration_bring_no_code(tmp_path, stranger):
    """A type that transformers knows, but not as a masked language model, with code that would be one."""
    tiny_denoiser().save_pretrained(tmp_path / "denoiser")
    EDLMForMaskedDiffusion.from_components(tiny_denoiser()).save_pretrained(tmp_path / "plain")
    code = {"AutoModelForMaskedLM": f"{stranger.path}--code.Model"}
    part = {"model_type": "vit", "auto_map": code, "mask_token_id": 3, "vocab_size": 13}
    write_config(tmp_path / "plain", denoiser_config=part, mask_token_id=3)
    with pytest.raises(ValueError):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "plain", trust_remote_code=True)
    assert not stranger.ran
