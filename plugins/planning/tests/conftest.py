"""Fixtures of the service's tests."""

from tests.harness.public_rule import one_thread  # noqa: F401  # fixture
