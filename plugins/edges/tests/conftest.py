"""The tiny models of the service's own tests."""

from services.interpretability.tests.conftest import _one_thread, context, golden  # noqa: F401  # fixtures
