"""Fixtures of the tests: a tiny model behind the routes that bring what is steered, and commands that ask it."""

import pytest

from services.llm_longctx.api import lora, methods
from services.llm_longctx.tests.conftest import Server, app_of, client, codec, decoder, folder, one_thread  # noqa: F401
from tests.command import command_runner


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):  # noqa: F811  # a fixture
    routers = [module.router for module in (methods, lora)]
    with Server(app_of(folder, tmp_path_factory.mktemp("data"), *routers)) as running:
        yield running


@pytest.fixture
def run(server, monkeypatch, capfdbinary):
    """Run a command; gives its exit code, the lines of its output, and its errors."""
    command = command_runner(monkeypatch, capfdbinary)

    def call(*words):
        code, out, err = command(*words, "--url", server.url)
        return code, out.splitlines(), err

    return call
