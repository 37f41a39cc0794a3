"""Drain: `python -m shared.serving.drain` asks the replicas of this machine to withdraw, and waits until they are idle.

Drain of a pod before it is stopped (a `preStop` hook). Asked and answered through files in the data folder, so that it
works without Redis, Ray or a network: a replica writes `replicas/<id>` while it serves, holding its process id;
`replicas/<id>.drain` asks it to withdraw, and it removes both once it has finished what it had begun.
"""

import contextlib
import os
import time
from pathlib import Path

from shared.settings import settings

_POLL_S = 0.2


class DrainFiles:
    """The two files of one replica."""

    def __init__(self, data_dir: Path, replica_id: str) -> None:
        self._serving = data_dir / "replicas" / replica_id
        self._drain = self._serving.with_suffix(".drain")

    def create(self) -> None:
        """Say that the replica serves."""
        self._serving.parent.mkdir(parents=True, exist_ok=True)
        self._serving.write_text(str(os.getpid()), "ascii")

    def is_requested(self) -> bool:
        """Whether the replica is asked to drain."""
        return self._drain.exists()

    def remove(self) -> None:
        """Say that it serves no more."""
        self._serving.unlink(missing_ok=True)
        self._drain.unlink(missing_ok=True)


def drain(data_dir: Path, timeout_s: float) -> bool:
    """Ask all replicas of a data folder to drain; return whether they did in time."""
    end = time.monotonic() + timeout_s
    while serving := [path for path in (data_dir / "replicas").glob("*") if not path.suffix and _is_alive(path)]:
        if time.monotonic() >= end:
            return False
        for path in serving:
            with contextlib.suppress(FileNotFoundError):
                path.with_suffix(".drain").touch()
        time.sleep(_POLL_S)
    return True


def _is_alive(path: Path) -> bool:
    """Whether the process that wrote the file is there; a replica that was killed leaves its file behind."""
    try:
        os.kill(int(path.read_text("ascii")), 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)
    return True


if __name__ == "__main__":
    # Never fails: what comes next is the stop in any case.
    drain(settings().data_dir, settings().shutdown_grace_s)
