"""A real gateway in front of a stub service, for the client library and the command."""

import pytest

from services.gateway.tests.stage import running


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A gateway on a socket of its own; `stage.url` is its address."""
    with running(tmp_path_factory.mktemp("gateway")) as made:
        yield made
