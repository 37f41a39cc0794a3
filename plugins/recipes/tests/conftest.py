"""Settings of all tests of this plug-in."""

from tests.harness.public_rule import one_thread  # noqa: F401  # fixture
