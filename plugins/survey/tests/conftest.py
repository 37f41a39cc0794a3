"""Settings of all tests of this plug-in, and a gateway in front of the detector and the planner."""

import pytest

from fovea_planning.models.planner import FoveaPlanner
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.gateway.tests.stage import served
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture


@pytest.fixture(scope="package")
def url(tmp_path_factory):
    kinds = {"yolo9tr": Yolo9trBoxDetector, "planner": FoveaPlanner}
    with served("detection", kinds, tmp_path_factory.mktemp("survey")) as address:
        yield address
