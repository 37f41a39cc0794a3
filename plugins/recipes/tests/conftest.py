"""Settings of all tests of this plug-in."""

import pytest

from fovea_recipes.training import folder_recipe
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture


@pytest.fixture(scope="package", autouse=True)
def _few_strange_pictures():
    """Strange pictures that recipes know decide no test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_recipe, "STRANGE", 6)
        yield
