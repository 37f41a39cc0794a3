"""The tiny model, as the service's own tests have it."""

from services.interpretability.tests.conftest import tiny  # noqa: F401  # fixture
