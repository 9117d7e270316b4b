"""A Hub on this machine, a process that takes it for the Hub, and one that does not have this package."""

import pytest
from bare import BarePython
from hub_client import HubClient
from hub_server import HubServer
from pushed_models import TOKENIZER, build


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
def folder(tmp_path):
    """A complete model with its tokenizer."""
    build("nce").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
