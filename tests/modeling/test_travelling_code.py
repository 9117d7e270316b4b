"""The code that travels with every checkpoint: it stands alone, and asks a reader for no trust besides."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
from published import tiny_denoiser
from transformers.dynamic_module_utils import get_relative_import_files

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMForCausalLM, MDLMForMaskedLM, MDLMModel
from edlm_hf.modeling import modeling_mdlm

MODELING = Path(modeling_mdlm.__file__).parent
FILES = sorted(MODELING.glob("*.py"))
PACKAGES = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names


def imports(file: Path) -> list[str]:
    """The modules that a file imports, with dots before those of its own folder."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_travelling_code_imports_its_neighbours_and_neither_the_package_nor_a_client_of_the_hub(file):
    for name in imports(file):
        if name.startswith("."):
            assert (MODELING / f"{name[1:]}.py").exists(), name
        else:
            assert name.split(".")[0] in PACKAGES, name
        if name.startswith("huggingface_hub"):
            assert name in ("huggingface_hub.dataclasses", "huggingface_hub.errors")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_travelling_code_neither_pushes_nor_writes_cards_nor_looks_for_secrets(file):
    client = r"HfApi|hf_api|CommitOperation|create_(repo|branch|commit)|upload_|get_token|requests|httpx|urllib"
    cards = r"ModelCard|README|SIGNATURE|hide_secrets"
    assert not re.findall(f"{client}|{cards}", file.read_text())


def test_code_beside_a_checkpoint_is_the_modelling_code_alone(tmp_path):
    denoiser = tiny_denoiser()
    for model in (denoiser, EDLMForMaskedDiffusion.from_components(denoiser, energy_type="nce")):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        files = {file.name for file in folder.glob("*.py")}
        assert files < {file.name for file in FILES}


@pytest.mark.parametrize(
    ("model_class", "most_kilobytes"),
    [
        (MDLMModel, 95),
        (MDLMForCausalLM, 100),
        (EDLMEnergyModel, 105),
        (MDLMForMaskedLM, 325),
        (EDLMForMaskedDiffusion, 460),
    ],
)
def test_a_network_without_diffusion_brings_no_code_of_samplers(model_class, most_kilobytes):
    source = Path(inspect.getfile(model_class))
    files = {source, *map(Path, get_relative_import_files(source))}
    assert sum(file.stat().st_size for file in files) <= 1000 * most_kilobytes
    has_samplers = any(file.stem == "samplers" for file in files)
    assert has_samplers == (model_class in (MDLMForMaskedLM, EDLMForMaskedDiffusion))
