"""Append-only log of labels: one file of JSON lines per judge and settings, one line per finished pair.

A line is on the disk before its label counts, so a crash loses none and a resumed batch asks for none twice; only pairs
that were under way at the very moment are asked again. One process writes at a time, by a lock that the kernel frees
when that process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shared.registry import CallContext

__all__ = ["LabelLog", "open_label_log", "read_label_log"]

Line = dict[str, Any]

LOCK_POLL_S = 0.1
"""Time between two looks at whether another batch of the same judge is done."""


class LabelLog:
    """An open log: knows which pairs have a verdict, and appends more. Safe to share between threads."""

    def __init__(self, file: BinaryIO, lines: list[Line]) -> None:
        self._file, self._lock = file, threading.Lock()
        self._judged: set[str] = set()
        self._tokens: Counter[str] = Counter()
        for line in lines:
            self._count(line)

    def has_verdict(self, pair: str) -> bool:
        """Whether a pair has a verdict; one that failed has none."""
        with self._lock:
            return pair in self._judged

    def count_tokens(self, batch: str) -> int:
        """Tokens that a batch spent, over all its attempts."""
        with self._lock:
            return self._tokens[batch]

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line and sync it; when this returns, no crash can lose it."""
        raw = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf8", "backslashreplace") + b"\n"
        with self._lock:
            self._file.write(raw)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._count(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        self._tokens[str(line.get("batch"))] += int(line.get("tokens", 0))
        if line.get("verdict") is not None:
            self._judged.add(str(line["pair"]))


@contextlib.contextmanager
def open_label_log(path: Path, run: CallContext) -> Iterator[LabelLog]:
    """Open a log for writing, alone; waits while another batch writes it.

    Raises:
        Cancelled: The call was cancelled while it waited.
        DeadlineExceeded: Its deadline passed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _lock(file, run)
        _sync_folder(path.parent)
        file.seek(0)
        lines, whole = _lines(file.read())
        # Half a line is what a crash left: its label never counted, and what comes next must not be glued to it.
        file.truncate(whole)
        yield LabelLog(file, lines)


def read_label_log(path: Path) -> list[Line]:
    """All whole lines of a log, also while it is written; none where there is no file."""
    try:
        return _lines(path.read_bytes())[0]
    except FileNotFoundError:
        return []


def _lock(file: BinaryIO, run: CallContext) -> None:
    while True:
        run.check()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.progress(0.0, "another batch of the same judge is running")
            time.sleep(LOCK_POLL_S)
        else:
            return


def _lines(raw: bytes) -> tuple[list[Line], int]:
    """The whole lines, and the length of the file up to the end of the last one."""
    whole = raw.rfind(b"\n") + 1
    found = []
    for text in raw[:whole].splitlines():
        with contextlib.suppress(ValueError):  # a line that the disk spoiled costs its own pair, not the batch
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("pair"), str):
                found.append(line)
    return found, whole


def _sync_folder(folder: Path) -> None:
    """Make the file's name as durable as its content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
