"""Fixtures of the two services that are evaluated."""

from services.interpretability.tests.conftest import context  # noqa: F401  # fixtures
from services.llm_longctx.tests.conftest import codec, folder, one_thread, tiny  # noqa: F401  # fixtures
