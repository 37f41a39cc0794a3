"""The tiny models of the service's own tests."""

from services.interpretability.tests.conftest import context, golden, one_thread  # noqa: F401  # fixtures
