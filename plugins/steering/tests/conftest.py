"""Fixtures of the tests: a tiny model behind the routes that bring what is steered, and commands that ask it."""

import sys

import pytest

from fovea.cli import main as cli
from services.llm_longctx.api import lora, methods
from services.llm_longctx.tests.conftest import Server, _one_thread, app_of, client, codec, decoder, folder  # noqa: F401


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):  # noqa: F811  # a fixture
    routers = [module.router for module in (methods, lora)]
    with Server(app_of(folder, tmp_path_factory.mktemp("data"), *routers)) as running:
        yield running


@pytest.fixture
def run(server, monkeypatch, capsys):
    """Run a command; gives its exit code, the lines of its output, and its errors."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fovea", *words, "--url", server.url])
        with pytest.raises(SystemExit) as ended:
            sys.exit(cli.main())
        out, err = capsys.readouterr()
        return ended.value.code or 0, out.splitlines(), err

    return call
