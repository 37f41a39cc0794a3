"""Watchdog of a process: it says when work is stuck, and ends a process that does not recover.

Three parts, each for what the others can't see: a look at the work on threads, once a second, on the event loop; a
timer that ends a process whose loop is deaf, also while something holds the interpreter; and the kernel's limit of
memory, for what grows faster than the memory guard looks.
"""

import asyncio
import contextlib
import faulthandler
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.serving.memory_guard import read_proc_bytes
from shared.telemetry import log

CHECK_INTERVAL_S: Final = 1.0

RESTART_AFTER_S: Final = 30.0
"""How long a process may be stuck before it ends itself; whoever started it starts it again."""

DEAF_S: Final = 60
"""How long an event loop may be silent; then the process is ended where it stands, with the stacks of its threads."""

EXIT_STATUS: Final = 70
"""Of a process that ends itself because it is stuck."""

MEMORY_FACTOR: Final = 1.5
"""The kernel's limit in shares of the guard's: it counts what is reserved, not what is in RAM."""


class Watchdog:
    """Looks for trouble once a second. Belongs to the event loop that starts it."""

    def __init__(self, find_trouble: Callable[[float], str], give_up: Callable[[str], None]) -> None:
        """Watch a process: `give_up` ends it for a trouble that did not pass.

        `find_trouble` names the parts that have been stuck for so many seconds or more, in one sentence; or nothing.
        """
        self._find_trouble, self._give_up = find_trouble, give_up
        self._is_stuck = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    def check(self) -> None:
        """Look once, and give up where the trouble has lasted."""
        trouble = self._find_trouble(0.0)
        if bool(trouble) != self._is_stuck:
            self._is_stuck = bool(trouble)
            told = "this replica is stuck, and takes no new work" if trouble else "this replica has recovered"
            log().error(told, reason=trouble)
        if lasting := self._find_trouble(RESTART_AFTER_S):
            self._give_up(lasting)


class LoopTimer:
    """Ends the process when the event loop that starts it is deaf for long."""

    def __init__(self, deaf_s: float = DEAF_S) -> None:
        self._deaf_s = deaf_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer, and from now on start it again as long as the loop runs."""
        faulthandler.dump_traceback_later(self._deaf_s, exit=True, file=2)
        self._timer = asyncio.get_running_loop().call_later(min(CHECK_INTERVAL_S, self._deaf_s / 4), self.start)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def bound_memory(guard_limit: int) -> None:
    """Have the kernel refuse memory far beyond the guard's limit: what asks for it fails, and the process goes on.

    Not where there is a GPU: its driver reserves what it never uses. There the container's limit holds alone.
    """
    if not guard_limit or Path("/dev/nvidiactl").exists():
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = read_proc_bytes("status", "VmData:") + int(MEMORY_FACTOR * guard_limit)
    with contextlib.suppress(OSError, ValueError):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
