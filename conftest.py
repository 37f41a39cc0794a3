"""What the suite's two workers do, and what they give back.

`make test` hands each worker a half of the suite, in order (`--dist worksteal`): a file's fixtures are built once. One
worker gets what starts whole products and clusters, which would take the processor from each other. What these and
tests with a clock say depends on what else the machine does, so they may fail once (docs/adr/0027).
"""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent
PLATFORMS = (ROOT / "tests/e2e", ROOT / "tests/deploy")
"""Where tests start a product or a cluster of several processes."""

SLOW = frozenset((ROOT / "tests/slow.txt").read_text("utf8").split())
"""Test functions that `make check` leaves out, as `python -m tests.slow` found them."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is known to be slow."""
    if item.nodeid.partition("[")[0] in SLOW:
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts products and clusters first into the last worker's part; say what may fail once."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    heavy = [item for item in items if starts_platform(item)]
    light = [item for item in items if not starts_platform(item)]
    for item in (*heavy, *(item for item in light if item.get_closest_marker("timed"))):
        item.add_marker(pytest.mark.flaky(reruns=1))
    first = min(len(items) * (workers - 1) // workers, len(light))
    items[:] = [*light[:first], *heavy, *light[first:]]


def starts_platform(item: pytest.Item) -> bool:
    """Whether a test starts a whole product or a cluster."""
    return any(place in item.path.parents for place in PLATFORMS) or item.get_closest_marker("e2e") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Give the memory of a file's models back once its tests are over: two workers share the machine."""
    yield
    if sys.platform == "linux" and (nextitem is None or nextitem.path != item.path):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
