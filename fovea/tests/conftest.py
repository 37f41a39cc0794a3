"""A real gateway in front of a stub service, for the client library and the command."""

import pytest

from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture
def url(stage):
    return stage.url


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(photograph())
    return tmp_path
