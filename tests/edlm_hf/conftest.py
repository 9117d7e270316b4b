"""A Hub on this machine, processes with and without this package, folders of models, texts and caches."""

import random
import shutil

import datasets
import pytest
import yaml
from bare import BarePython
from hub_client import HubClient
from hub_server import HubServer
from model_folders import write_model
from published import tiny_config
from pushed_models import TOKENIZER, build

from edlm_hf import MDLMForMaskedLM
from edlm_hf.tokenization import text8_tokenizer


@pytest.fixture(scope="module")
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    process = HubClient(hub.environment(tmp_path_factory.mktemp("client")))
    yield process
    process.close()


@pytest.fixture(scope="module")
def without_package(tmp_path_factory):
    return BarePython(tmp_path_factory.mktemp("home"))


@pytest.fixture
def dataset_cache(tmp_path, monkeypatch):
    """Nothing is read from or left in the user's cache of datasets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quiet_datasets(dataset_cache):
    """Datasets with a cache of their own, without progress bars."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """A complete model with its tokenizer."""
    build("nce").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def denoiser_folder(tmp_path):
    """The folder of a denoiser with its tokenizer."""
    tokenizer = text8_tokenizer(12, start_token=False)
    MDLMForMaskedLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of small models with their tokenizer, by kind."""
    home = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, home / kind) for kind in ("mdlm", "causal", "edlm", "bert", "whole-bert")}


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that copies a model and damages the copy."""

    def make(kind, damage):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[kind], folder)
        damage(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file with one sentence many times."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat " * 400)
    return path


@pytest.fixture
def recipe(tmp_path, dataset_cache):
    """A recipe on a made-up text: a function that writes it with changes."""
    words, draw = ["the", "cat", "sat", "on", "a", "mat"], random.Random(0)
    (tmp_path / "train.txt").write_text(" ".join(draw.choices(words, k=2000)))
    (tmp_path / "validation.txt").write_text(" ".join(draw.choices(words, k=300)))
    common = {
        "dataset": str(tmp_path / "train.txt"), "eval_dataset": str(tmp_path / "validation.txt"),
        "normalize_text8": True, "style": "crop", "start_token": True, "length": 16, "eval_blocks": 20,
        "max_steps": 12, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "logging_steps": 4,
        "save_steps": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    sizes = {"hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "dropout": 0.0}

    def write(kind, **changes):
        file = tmp_path / f"{kind}.yaml"
        values = common | (sizes if kind != "energy" else {}) | {"output_dir": str(tmp_path / kind)} | changes
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write
