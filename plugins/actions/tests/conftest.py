"""Fixtures of the service's tests, and of the console's."""

from services.detection.tests.conftest import _one_thread  # noqa: F401  # fixture
from services.gateway.tests.conftest import stage, url  # noqa: F401  # fixtures
