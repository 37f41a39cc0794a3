"""A real gateway in front of a stub service, for the client library and the command."""

import sys

import pytest

from fovea.cli.main import main
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A gateway on a socket of its own; `stage.url` is its address."""
    with running(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(photograph())
    return tmp_path


@pytest.fixture
def call_main(monkeypatch):
    """Calls the command with these words; gives its exit code."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fovea", *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            return ended.code or 0
        return 0

    return call
