"""The models of the service's own tests."""

from plugins.circuits.tests.conftest import context, golden, smollm2, tiny  # noqa: F401  # fixtures
