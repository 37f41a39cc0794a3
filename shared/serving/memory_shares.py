"""Memory of all processes of ours on this machine together: where it is too much, the largest process ends itself.

Each process may take most of the machine, and several share it. So each writes what it takes into a file in their data
folder and reads those of the others. Memory of other programs does not count. Linux only, as the guard.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

LOOK_INTERVAL_S = 0.5

_EXACT_FOR_S = 10.0
"""How long shares are counted exactly after they seemed too much: that takes the kernel milliseconds each time."""


class MemoryShares:
    """The shares of a machine's memory, and this process's among them."""

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
        self._due = now + LOOK_INTERVAL_S
        is_exact = now < self._exact_until
        own = (_read_exclusive_bytes() or resident) if is_exact else resident
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
        """The shares by pid; files of processes that are gone are removed."""
        found = {}
        for path in self._folder.iterdir():
            if not Path("/proc", path.name).exists():
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(ValueError, OSError):  # being written at this moment
                found[path.name] = int(path.read_text())
        return found


def _read_exclusive_bytes() -> int:
    """Memory of this process with its part of what it shares; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return 0
