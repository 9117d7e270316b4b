"""A Hub on this machine, and a process that takes it for the Hub."""

import pytest
from hub_client import HubClient
from hub_server import HubServer


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
