"""Log of labels: JSON lines per judge and settings in segments, one line per finished pair.

A line is stored before its label counts, so a crash loses none and a resumed batch asks for none twice; only pairs that
were under way at the very moment are asked again. One process writes at a time, by a lock.

    <settings>/lines/<begin>-<random>.jsonl     segments of at most `SEGMENT_LINES` lines, by the time they were begun
    <settings>/lease/<number>                   who writes
"""

import contextlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from shared.registry import CallContext
from shared.storage import ObjectLock, ObjectStore

Line = dict[str, Any]

LOCK_POLL_S = 0.1
"""Time between two looks at whether another batch of the same judge is done."""

SEGMENT_LINES = 64
"""Most lines of a segment: an object can't be appended to, so each line rewrites its segment."""


class LabelLog:
    """An open log: knows which pairs have a verdict, and appends more. Safe to share between threads."""

    def __init__(self, segments: ObjectStore, lines: list[Line]) -> None:
        self._segments, self._lock = segments, threading.Lock()
        self._judged: set[str] = set()
        self._tokens: Counter[str] = Counter()
        self._segment: list[bytes] = []
        self._name = ""
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
        """Append one line; when this returns, no crash can lose it."""
        raw = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf8", "backslashreplace") + b"\n"
        with self._lock:
            if not self._name or len(self._segment) >= SEGMENT_LINES:
                self._name, self._segment = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl", []
            self._segments.put(self._name, b"".join([*self._segment, raw]))
            self._segment.append(raw)
            self._count(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        self._tokens[str(line.get("batch"))] += int(line.get("tokens", 0))
        if line.get("verdict") is not None:
            self._judged.add(str(line["pair"]))


@contextlib.contextmanager
def open_label_log(objects: ObjectStore, run: CallContext) -> Iterator[LabelLog]:
    """Open a log for writing, alone; waits while another batch writes it, until the call is over."""

    def wait() -> None:
        run.check()
        run.progress(0.0, "another batch of the same judge is running")

    run.check()
    with ObjectLock(objects.under("lease"), wait, LOCK_POLL_S):
        yield LabelLog(objects.under("lines"), read_label_log(objects))


def read_label_log(objects: ObjectStore) -> list[Line]:
    """All lines of a log, also while it is written; none where there is no log."""
    segments = objects.under("lines")
    return [line for name in segments.list_names() for line in _lines(segments.get(name) or b"")]


def _lines(raw: bytes) -> list[Line]:
    found = []
    for text in raw.splitlines():
        with contextlib.suppress(ValueError):  # a line that the disk spoiled costs its own pair, not the batch
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("pair"), str):
                found.append(line)
    return found
