"""Settings of all tests of this plug-in."""

from services.detection.tests.conftest import _one_thread  # noqa: F401  # fixture
