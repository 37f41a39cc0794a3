"""A plug-in for pytest in mutmut's processes: quick tests first, and none that hangs holds up the run.

Both need the seconds that mutmut measured before the first mutant.
"""

import json
import os
import signal
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

HANGS_S, HANGS_TIMES = 4.0, 10.0
"""A test hangs if it takes so many seconds, and so many times as long as usual, on top."""

TIMEOUT = 36
"""Exit code that mutmut reads as a timeout."""


@cache
def read_seconds() -> dict[str, float]:
    """Test → seconds without mutants; empty while they are being measured."""
    stats = Path("mutmut-stats.json")
    return json.loads(stats.read_text("utf8"))["duration_by_test"] if stats.exists() else {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: read_seconds().get(item.nodeid, 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End the process if a test hangs, as a mutant may make it wait for ever."""
    if (usual := read_seconds().get(item.nodeid)) is None:
        return (yield)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMEOUT))
    signal.setitimer(signal.ITIMER_REAL, HANGS_S + HANGS_TIMES * usual)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
