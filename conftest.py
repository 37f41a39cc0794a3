"""How the suite is split between pytest's workers (`-n 2 --dist loadgroup`, as `make test` runs it)."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one worker, so that its fixtures are built once.

    Tests that start the whole product share a worker: two products at once would take each other's time. A file may
    name a group of its own. With pytest 9.2 and pytest-xdist 3.8 groups have no effect.
    """
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        starts_product = any(item.get_closest_marker(name) for name in ("e2e", "browser"))
        item.add_marker(pytest.mark.xdist_group("product" if starts_product else item.nodeid.partition("::")[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Give the memory of a file's models back once its tests are over: two workers share the machine."""
    yield
    if sys.platform == "linux" and (nextitem is None or nextitem.path != item.path):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
