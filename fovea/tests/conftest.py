"""A real gateway in front of a stub service, for the client library and the command."""

import pytest

from services.gateway.tests.conftest import stage, url  # noqa: F401  # fixtures
from services.gateway.tests.stub_service import photograph


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(photograph())
    return tmp_path
