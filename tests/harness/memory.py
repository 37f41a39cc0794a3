"""Give memory back between files of tests, when there is something to give.

Collecting garbage walks every object that is alive, which takes seconds once torch, Ray and transformers are imported.
Objects that are alive when all tests are collected are therefore frozen until the process ends, and garbage is
collected only when the process has grown. This happens between tests, so that no test's duration contains it.
"""

import atexit
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GROWTH_BYTES = 400 << 20
"""Two workers share the memory of one machine; a file's models take 100 to 800 MB."""

_RESIDENT = pytest.StashKey[int]()


def read_resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096
    except OSError:
        return 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect no garbage while modules are imported: they leave little, and the search takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries report objects that outlive the interpreter as leaks
    session.config.stash[_RESIDENT] = read_resident_bytes()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Collect garbage after the last test of a file if the process has grown since the last time."""
    result = yield
    is_last, before = nextitem is None or nextitem.path != item.path, item.config.stash.get(_RESIDENT, 0)
    if is_last and read_resident_bytes() - before > GROWTH_BYTES:
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        item.config.stash[_RESIDENT] = read_resident_bytes()
    return result
