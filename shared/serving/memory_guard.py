"""Memory guard: ends a process that outgrows its memory before the kernel or Ray ends its neighbours.

Linux only: elsewhere it reads 0 and never acts. Knows nothing about requests and replicas.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from shared.settings import Settings

EXIT_STATUS = 137
"""As of a process that the kernel ends for its memory."""

_POLL_S = 0.05
_LONGEST_POLL_S = 0.5
_LOOK_INTERVAL_S = 0.5  # between two looks at the shares
_EXACT_FOR_S = 10.0  # for which shares are counted exactly after they seemed too much: each time takes milliseconds
_GROWTH_PER_S = 8 * 2**30  # bytes by which a process may grow: the more is free, the longer the guard sleeps
_DEFAULT_SHARE = 0.8  # of the machine's or the container's memory that our processes may take, one or all together

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATM = Path("/proc/self/statm")


class MemoryShares:
    """Memory of all processes of ours on this machine: where it is too much, the largest process ends itself.

    Each process may take most of the machine, and several share it. So each writes what it takes into a file in their
    data folder and reads those of the others. Memory of other programs does not count.
    """

    def __init__(self, data_dir: Path, bound: int) -> None:
        """Let the processes that share a data folder take `bound` bytes together; 0 sets no bound."""
        self._bound, self._due, self._exact_until = bound, 0.0, 0.0
        namespace = 0
        with contextlib.suppress(OSError):
            namespace = Path("/proc/self/ns/pid").stat().st_ino  # containers have pids of their own
        self._folder, self._own = data_dir / "memory" / str(namespace), str(os.getpid())

    def must_end(self, resident: int) -> bool:
        """Write this process's share, its bytes in RAM; return whether all are too much and it is the largest."""
        now = time.monotonic()
        if not self._bound or now < self._due:
            return False
        self._due = now + _LOOK_INTERVAL_S
        is_exact = now < self._exact_until
        own = (read_proc_bytes("smaps_rollup", "Pss:") or resident) if is_exact else resident
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / self._own).write_text(str(own))
            shares = self._read()
            if sum(shares.values()) > self._bound:
                self._exact_until = now + _EXACT_FOR_S
                # Counted with what is shared, each share is an upper bound: nobody ends by such a sum.
                return is_exact and max(shares, key=lambda pid: (shares[pid], pid)) == self._own
        return False

    def leave(self) -> None:
        """Take this process's share away."""
        with contextlib.suppress(OSError):
            (self._folder / self._own).unlink()

    def _read(self) -> dict[str, int]:
        found = {}
        for path in self._folder.iterdir():
            if not Path("/proc", path.name).exists():
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(ValueError, OSError):  # being written at this moment
                found[path.name] = int(path.read_text())
        return found


class MemoryGuard:
    """A thread that watches the memory of its process, and calls `on_breach` once when it outgrows its limit."""

    def __init__(self, limit: int, on_breach: Callable[[], None], shares: MemoryShares | None = None) -> None:
        """Watch from now on that this process has at most `limit` bytes; a limit of 0 watches nothing.

        `on_breach` ends the process, also if it has the largest of all `shares` where they are too much together.
        """
        self.limit = limit
        self._shares = shares
        self._on_breach = on_breach
        self._stopping = threading.Event()
        if limit:
            threading.Thread(target=self._watch, name="memory-guard", daemon=True).start()

    @property
    def share(self) -> float:
        """How much of the limit is taken; 0 without one."""
        return read_resident_bytes() / self.limit if self.limit else 0.0

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        if self._shares is not None:
            self._shares.leave()

    def _watch(self) -> None:
        pause = _POLL_S
        while not self._stopping.wait(pause):
            resident = read_resident_bytes()
            left = self.limit - resident
            if left < 0 or (self._shares is not None and self._shares.must_end(resident)):
                self._on_breach()
                return
            pause = min(max(left / _GROWTH_PER_S, _POLL_S), _LONGEST_POLL_S)


def build_guard(settings: Settings, on_breach: Callable[[], None]) -> MemoryGuard:
    """Guard a process by its own limit and by what all processes of its data folder may take together."""
    return MemoryGuard(find_memory_limit(settings), on_breach, MemoryShares(settings.data_dir, find_machine_bound()))


def read_resident_bytes() -> int:
    """Memory of this process that is in RAM, bytes; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def read_proc_bytes(file: str, field: str) -> int:
    """A size that the system tells of this process in `/proc/self`; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/self", file).read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
    return 0


def find_memory_limit(settings: Settings) -> int:
    """The setting, or the larger part of what the machine or the container has; 0 where the system does not tell."""
    return settings.replica_memory_bytes if settings.replica_memory_bytes is not None else find_machine_bound()


def find_machine_bound() -> int:
    """Most memory that our processes take: the larger part of the machine's or the container's; 0 if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return int(_DEFAULT_SHARE * min(found, default=0))
