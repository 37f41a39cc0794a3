"""Fixtures of all tests of this service."""

from tests.harness.public_rule import one_thread  # noqa: F401  # fixture
