"""How much of the tests a run takes: `make test` some examples and cases, `make test-all` many, and all cases."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

patience = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", max_examples=25, derandomize=True, **patience)
settings.register_profile("deep", max_examples=400, **patience)
settings.load_profile("suite")


def fewer(divisor: int) -> int:
    """Examples of the present profile divided by `divisor`, for tests whose single example takes long; at least 3."""
    return max(3, settings.default.max_examples // divisor)


def in_depth(cases: Any, always: Any) -> list[Any]:
    """Parameters of a test, single ones or tuples; those that are not in `always` are for `make test-all` alone."""
    marks = {True: (), False: (pytest.mark.release,)}
    return [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=marks[one in always]) for one in cases]
