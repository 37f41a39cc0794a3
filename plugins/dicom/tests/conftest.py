"""Settings of all tests of this plug-in, and a gateway in front of PraNet."""

import pytest

from services.gateway.tests.stage import served
from services.medical_seg.models.pranet import PraNetSegmenter
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture


@pytest.fixture(scope="package")
def url(tmp_path_factory):
    with served("medical-seg", {"pranet": PraNetSegmenter}, tmp_path_factory.mktemp("study")) as found:
        yield found
