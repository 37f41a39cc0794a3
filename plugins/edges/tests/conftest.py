"""The tiny models of fovea-circuits' tests."""

from plugins.circuits.tests.conftest import (  # noqa: F401  # fixtures
    context,
    family_prompts,
    golden,
    model,
    one_thread,
)
