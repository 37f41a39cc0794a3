"""A clock that a test moves, in place of the module `time` of the modules that it names.

Only what reads the clocks of `time` in these modules sees it: timeouts of asyncio and of sockets, and
the clock of Redis, go on.
"""

import time
from types import ModuleType
from typing import Any

import pytest


class Clock:
    """Stands still until `advance`; all else is the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._monotonic, self._wall = time.monotonic(), time.time()

    def monotonic(self) -> float:
        return self._monotonic

    def perf_counter(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._wall += seconds

    def govern(self, *modules: ModuleType) -> None:
        for module in modules:
            self._monkeypatch.setattr(module, "time", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock; `clock.govern(module)` puts it in place."""
    return Clock(monkeypatch)
