"""Fixtures of the service's tests."""

from services.detection.tests.conftest import _one_thread  # noqa: F401  # fixture
