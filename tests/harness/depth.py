"""Parameters of tests of which `make test` runs some, at least one of each kind, and `make test-all` all."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def in_depth(cases: Iterable[Any], always: Container[Any]) -> list[Any]:
    """Cases, tuples of several parameters or single ones; those that are not among `always` are marked `release`."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.release] * (case not in always)
        )
        for case in cases
    ]
