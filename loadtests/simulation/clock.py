"""A clock that jumps from event to event: an asyncio loop whose waits take no time, and its module `time`.

Whatever waits on such a loop and reads such a clock runs unchanged, days in minutes. One thread, no sockets.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Coroutine, Iterator
from types import ModuleType
from typing import Any, TypeVar

Found = TypeVar("Found")

START_S = 10_000.0
"""Where clocks begin: not at zero, which some code takes for never."""


class SimulatedClock:
    """Stands in for the module `time` of the modules that it governs; `now` is in seconds."""

    def __init__(self) -> None:
        self.now = START_S

    def monotonic(self) -> float:
        """The simulated time."""
        return self.now

    perf_counter = time = monotonic

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _JumpingSelector(selectors.SelectSelector):
    """Lets the time of a wait pass at once."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and no timer is set: the simulation is stuck")
        self._clock.now += max(timeout, 0.0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop on a simulated clock."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__(_JumpingSelector(clock))
        self._simulated = clock

    def time(self) -> float:
        return self._simulated.now


@contextlib.contextmanager
def govern(clock: SimulatedClock, *modules: ModuleType) -> Iterator[None]:
    """Let modules read a clock in place of the system's while the block runs."""
    before = [module.time for module in modules]
    for module in modules:
        vars(module)["time"] = clock
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module)["time"] = own


def simulate(clock: SimulatedClock, work: Coroutine[Any, Any, Found]) -> Found:
    """Run to the end, with all that waits then cancelled."""
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
        return runner.run(work)


class Processor:
    """One core that does one thing after another; `used_s` is the time for which it was busy."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._free_at = 0.0
        self.used_s = 0.0

    @property
    def backlog_s(self) -> float:
        """How long what comes now would wait."""
        return max(self._free_at - self._clock.now, 0.0)

    async def work(self, seconds: float, delay_s: float = 0.0) -> None:
        """Wait for a turn, and until so many seconds of work are done; `delay_s` more go by on the way."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self.used_s += seconds
        await asyncio.sleep(self._free_at + delay_s - self._clock.now)
