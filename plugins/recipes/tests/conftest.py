"""Settings of all tests of this plug-in."""

import pytest

from fovea_recipes.training import folder_recipe, intervals
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture


@pytest.fixture(scope="package", autouse=True)
def _few_strange_pictures_and_resamples():
    """How many of them recipes draw decides no test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_recipe, "STRANGE", 3)
        patch.setitem(intervals.bootstraps.__kwdefaults__, "rounds", 50)
        yield
