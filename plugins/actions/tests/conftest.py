"""Fixtures of the service's tests, and of the console's."""

from services.gateway.tests.conftest import stage, url  # noqa: F401  # fixtures
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture
