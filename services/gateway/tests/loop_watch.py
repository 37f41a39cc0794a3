"""Longest hold of a process's event loop, by clocks that a busy machine does not move.

A task on the loop comes back every few milliseconds and looks at what went by since: the processor time of the loop's
thread is what callbacks took; beyond it, time in which the thread was neither running nor queued for a processor is
time in which it waited for the interpreter's lock, as far as other threads of the process worked meanwhile.
"""

import asyncio
import mmap
import struct
import time
from pathlib import Path

BEAT_S = 0.005
_VALUE = struct.Struct("d")


class LoopWatch:
    """One number in a file that two processes map: the longest hold since it was last taken, seconds."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(_VALUE.size))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), _VALUE.size)

    def take(self) -> float:
        (longest,) = _VALUE.unpack(self._shared[:])
        self._shared[:] = _VALUE.pack(0.0)
        return float(longest)

    async def run(self) -> None:
        before = _clocks()
        while True:
            await asyncio.sleep(BEAT_S)
            now = _clocks()
            gap, thread, process, queued = (new - old for new, old in zip(now, before, strict=True))
            held = max(thread, min(gap - BEAT_S - queued, process))
            if held > _VALUE.unpack(self._shared[:])[0]:
                self._shared[:] = _VALUE.pack(held)
            before = now


def _clocks() -> tuple[float, float, float, float]:
    """Wall, processor time of this thread and of the process, and time that this thread was queued, seconds."""
    return time.perf_counter(), time.thread_time(), time.process_time(), queued_seconds()


def queued_seconds() -> float:
    """How long this thread has waited for a processor; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
