"""What the suite's two workers give back.

`make test` hands each worker a half of the suite, in order (`--dist worksteal`): a file's fixtures are built once.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Give the memory of a file's models back once its tests are over: two workers share the machine."""
    yield
    if sys.platform == "linux" and (nextitem is None or nextitem.path != item.path):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
