"""Orphan cleanup: `python -m shared.serving.up.orphan_cleanup` ends what a supervisor started once it is gone.

The supervisor holds the standard input and writes the sessions it starts (`+pid`) and has ended (`-pid`). When
the input ends, the cleanup ends the sessions that are left. It imports little, so it costs little.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_GRACE_S = 15.0


def session_members(session: int) -> list[int]:
    """Processes of a session (its leader's pid names it), zombies left out. Needs /proc."""
    processes = (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [int(entry.name) for entry in processes if _session(entry) == session]


def _session(entry: Path) -> int | None:
    try:
        state, _parent, _group, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(session)


def end_sessions(sessions: Iterable[int], grace_s: float = _GRACE_S) -> None:
    """Ask the leaders to stop, wait for all members, and kill those that are left after `grace_s`."""
    waiting = list(sessions)
    for leader in waiting:
        _send([leader], signal.SIGTERM)
    until = time.monotonic() + grace_s
    while any(session_members(leader) for leader in waiting) and time.monotonic() < until:
        time.sleep(0.05)
    for leader in waiting:
        while left := session_members(leader):
            _send(left, signal.SIGKILL)
            time.sleep(0.02)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def main() -> None:
    """Keep the list until the input ends, then end what is on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the supervisor's end counts
    sessions: dict[int, None] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            sessions[int(line[1:])] = None
        else:
            sessions.pop(int(line[1:]), None)
    end_sessions(reversed(sessions))


if __name__ == "__main__":
    main()
